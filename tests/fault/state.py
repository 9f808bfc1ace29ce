# SPDX-License-Identifier: Apache-2.0
"""Faults of what a job computes and keeps, for table.py: a flipped bit, a slow rank, a death while all meet, disks that are full or stand still, checkpoints and copies that are damaged."""
import contextlib
import glob
import os
import re
import signal
import subprocess
import time

import replica_memory
from blow import NotHere, Run, ordinary
from cluster import Failure, wait_for

FULL_DISK = 200 << 20


def kinds(c, job, kind):
    return [e for e in c.events(job)["events"] if e["kind"] == kind]


def flipped_bit(c, want, name, rank):
    """A bit of a parameter flips. With two replicas both are suspects; the step is done again and nothing that was computed with it is kept."""
    run = Run(c, name, "--set", "recovery.checksum_every=1", "--set", "test.flip_step=20", "--set", f"test.flip_rank={rank}")
    run.at(19)
    run.t0 = next(r["t"] for r in c.rows(run.job) if r["step"] == 19)
    told = wait_for("checksums that differ", lambda: kinds(c, run.job, "checksums_differ"), 30)[0]
    recover, again = run.new_step()
    run.finish(want)
    return dict(detect=max(told["unix_ms"] / 1e3 - run.t0, 0.001), recover=recover, lost=again, named=bool(re.search(rf"\b{rank} on", told["text"])), bitwise=True, told=told["text"])


def straggler(c, want, name, rank):
    """Nothing is broken: one rank takes 0.15 s longer for each step. It is named and trains on."""
    run = Run(c, name, "--set", f"test.slow_rank={rank}", "--set", "test.slow_ms=150", "--set", "metrics.straggler_steps=4", "--set", "metrics.straggler_percent=100")
    run.at(1)
    run.t0 = c.rows(run.job)[0]["t"]
    told = wait_for("a straggler to be named", lambda: kinds(c, run.job, "straggler"), 60)[0]
    run.finish(want)
    if c.job(run.job)["restarts"]:
        raise Failure(f"{name}: found {c.job(run.job)['restarts']} recoveries, expected none")
    return dict(detect=told["unix_ms"] / 1e3 - run.t0, recover=None, lost=0, named=told["rank"] == rank, bitwise=True, told=told["text"])


def while_joining(c, want, name, rank):
    """Another rank is lost first; while all connect to each other again, each connection taking 0.15 s longer, this one dies."""
    run = Run(c, name)
    run.at(12)
    other = (rank + 4) % 8
    nodes = [n for n in c.started if n != "fp8d"]
    try:
        for n in nodes:
            c.trouble(n, "connect 150")
        time.sleep(0.1)  # it is looked at every 50 ms
        plans, resumed, pids = len(kinds(c, run.job, "plan")), len(kinds(c, run.job, "resumed")), c.pids(run.job)
        os.kill(pids[other], signal.SIGKILL)
        wait_for("the plan of the next epoch", lambda: kinds(c, run.job, "plan")[plans:], 20, 0.005)
        time.sleep(0.1)
        if len(kinds(c, run.job, "resumed")) > resumed:
            raise Failure(f"{name}: all had met before the blow")
        run.signal_rank(rank, signal.SIGKILL)
    finally:
        for n in nodes:
            c.trouble(n, "")
    row = ordinary(run, rank, f"^rank ({rank}|{other}) .*SIGKILL", want)  # one incident, which is named by what began it
    row["named"] = row["named"] and any(e["rank"] == rank and e["unix_ms"] >= (run.t0 - 0.001) * 1000 for e in kinds(c, run.job, "rank_lost"))
    return row


def goes_on(c, run, want, kind, hurt, well):
    """A disk that is of no use for a while: told, trained on, and saved again when it is well."""
    row = None
    try:
        run.blow(hurt)
        told = wait_for(f"event {kind}", lambda: kinds(c, run.job, kind), 30)[0]
        row = next(r for r in c.rows(run.job) if r["t"] > run.t0)
    finally:
        well()
    run.finish(want)
    if c.job(run.job)["restarts"]:
        raise Failure(f"{run.name}: found {c.job(run.job)['restarts']} recoveries, expected training to go on")
    saved = c.json("ckpt", "ls", str(run.job))["checkpoints"]
    if not saved or c.ctl("ckpt", "verify", saved[-1]["path"], check=False).returncode != 0:
        raise Failure(f"{run.name}: found {saved}, expected a checkpoint that verifies")
    return dict(detect=max(told["unix_ms"] / 1e3 - run.t0, 0.001), recover=row["t"] - run.t0, lost=0, named=True, bitwise=True, told=told["text"])


def disk_full(c, want, name, rank):
    folder = f"{c.home}/ckpt-{name}"
    os.makedirs(folder, exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL_DISK}", "fp8ctl-test", folder], stderr=subprocess.DEVNULL, check=False).returncode:
        raise NotHere("no right to mount a tmpfs")

    def fill():
        with contextlib.suppress(OSError), open(folder + "/filler", "wb", buffering=0) as h:
            while True:
                h.write(b"x" * (1 << 20))
    try:
        run = Run(c, name, "--set", "checkpoint.every_steps=5")
        run.at(6)
        return goes_on(c, run, want, "storage_full", fill, lambda: os.remove(folder + "/filler"))
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def disk_stalls(c, want, name, rank):
    run = Run(c, name, "--set", "checkpoint.every_steps=5", "--set", "checkpoint.stall_timeout_ms=500")
    run.at(6)
    node = run.node_of(rank)
    return goes_on(c, run, want, "storage_stalled", lambda: c.trouble(node, "sync 4000"), lambda: c.trouble(node, ""))


def all_off(c, hurt):
    """All nodes lose power, something is damaged meanwhile, and they are on again."""
    nodes = [n for n in c.started if n != "fp8d"]
    for n in nodes:
        c.kill_node(n)
    hurt()
    for n in nodes:
        c.start_worker(n)


def loaded_instead(c, run, want, cause, source, recover, again):
    """The same bits, and that what was damaged was told and not loaded."""
    told = [e["text"] for e in c.events(run.job)["events"] if e["unix_ms"] / 1e3 >= run.t0 and re.search(cause, e["text"])]
    detect = run.first_word()
    run.finish(want)
    c.wait_ready(c.nodes)
    if source not in run.causes()[-1]:
        raise Failure(f"{run.name}: found '{run.causes()[-1]}', expected it to go on {source}")
    return dict(detect=detect, recover=recover, lost=again, named=bool(told), bitwise=True, told=(told or run.causes())[0])


def torn_shard(c, want, name, rank):
    """All nodes lose power, and half of a shard of the newest commit is not there: the commit before it is loaded."""
    run = Run(c, name, "--set", "checkpoint.every_steps=5")
    run.at(12)

    def commits():
        return sorted(c.json("ckpt", "ls", str(run.job))["checkpoints"], key=lambda k: k["step"])
    wait_for("two commits", lambda: len(commits()) > 1, 30)
    seen = []

    def tear():
        seen.extend(commits())
        shard = sorted(glob.glob(seen[-1]["path"] + "/*.safetensors"))[rank]
        os.truncate(shard, os.path.getsize(shard) // 2)
    run.blow(lambda: all_off(c, tear))
    recover, again = run.new_step()
    wait_for(f"{name}: its recovery to be told", run.causes, 20)
    return loaded_instead(c, run, want, r"shard", f"from the checkpoint of step {seen[-2]['step']}", recover, again)


def corrupt_copy(c, want, name, rank):
    """The snapshots of a rank in its own node's memory are damaged, and it dies: its peer's copy is loaded."""
    run = Run(c, name)
    run.at(12)
    pids, node = c.pids(run.job), run.node_of(rank)
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.05)  # what is on its way to a peer arrives

    def deed():
        replica_memory.flip(f"/proc/{pids[rank]}/fd/{replica_memory.RANK_FD}")
        os.kill(pids[rank], signal.SIGKILL)
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    run.blow(deed)
    row = ordinary(run, rank, f"^rank {rank} .*SIGKILL", want)
    rejected = kinds(c, run.job, "replica_rejected")
    resumed = kinds(c, run.job, "resumed")[-1]["text"]
    row["named"] = row["named"] and any(e["node"] == node and "digest" in e["text"] for e in rejected) and "1 from peers" in resumed
    row["told"] = f"{rejected[0]['text'] if rejected else 'nothing was refused'}; {resumed}"
    return row


FAULTS = [
    ("12", "flip", "a bit of a weight flips; dp 2, every step compared", flipped_bit, "all"),
    ("14", "straggler", "one rank takes 0.15 s longer a step", straggler, "all"),
    ("16", "joining", "a rank dies while communicators are built", while_joining, "all"),
    ("25", "disk-full", "the disk of checkpoints is full", disk_full, "first"),
    ("34", "torn", "all nodes lose power; a shard of the newest commit is torn", torn_shard, "all"),
    ("35", "corrupt", "a rank dies, and its own snapshots are damaged", corrupt_copy, "all"),
    ("36", "stall", "storage stands still for 4 s in a save", disk_stalls, "all"),
]
