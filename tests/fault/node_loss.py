#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`node_loss.py BUILD [--quickstart]`: whole nodes are lost (worker, spawner and ranks at once) and the job goes on from its peers' memory, bit for bit, without a checkpoint.

Five nodes of two devices, a job of eight ranks, so one node is a spare.  The first loss is for good: the ranks move to the spare when the lease is over.  The second
node comes back at once, with empty memory.  No checkpoint is ever taken, so what is resumed from can have come from nowhere else.

--quickstart: the job of ./quickstart itself on its four nodes; one of them loses its ranks and its memory.  While they come back the job's checkpoint folder is not there under its name, and no
process of the job reads a byte from a disk.
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SLOWDOWN, SMALL, Failure, compare, paced, run_script, wait_for  # noqa: E402

STEPS = 32
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=0",
                    "--set", "checkpoint.at_end=false", *more)


def nodes_of(c, job):
    d = c.describe(job)
    return {r["rank"]: r["node"] for r in (d.get("plan") or d["job"]["plan"])["ranks"]}


def recovered(c, job, n):
    return [e for e in c.events(job)["events"] if e["kind"] == "recovered"][n:]


def lose(c, job, name, restart):
    """Kills a node and waits until the job has made a new step; the step it was resumed from and where it stood."""
    before = len(recovered(c, job, 0))
    stood = c.step(job)
    c.kill_node(name)
    if restart:
        c.start_worker(name)
    told = wait_for(f"the recovery from the loss of {name}", lambda: recovered(c, job, before), 30)[-1]["text"]
    resumed = [e for e in c.events(job)["events"] if e["kind"] == "resumed"][-1]
    step = int(re.search(r"resuming from step (\d+)", told)[1])
    slices = re.search(r"slices: (\d+) from their own node's memory, (\d+) from peers' \((\d+) bytes\), (\d+) from disk", resumed["text"])
    if not slices or (int(slices[1]), int(slices[2]), int(slices[4])) != (6, 2, 0) or int(slices[3]) == 0:
        raise Failure(f"{name}: found '{resumed['text']}', expected 6 slices from their own node's memory, 2 from peers' and none from disk")
    if "2 of 8 slices from peers" not in told:
        raise Failure(f"{name}: found '{told}', expected it to name the peers")
    if resumed["ms"] > 1000 * SLOWDOWN:
        raise Failure(f"{name}: restore took {resumed['ms']:.0f} ms, expected less than 1 s")
    if [f for f in os.listdir(c.home) if f.startswith("ckpt-") and os.listdir(c.home + "/" + f)]:
        raise Failure(f"{name}: a checkpoint was written")
    # Seen before the kill; ranks that were ahead of the reporting one by then do not matter.
    print(f"ok  {name} lost at step {stood}{', back at once' if restart else ', its ranks move to the spare'}: resumed from step {step} in {resumed['ms']:.0f} ms", flush=True)
    if step == 0 or step + 4 < stood:
        raise Failure(f"{name}: resumed from step {step}, lost at step {stood} or later: expected the newest that all peers hold")


def disk_reads(c, job):
    """{pid: bytes} that the job's processes, those who keep its memory and who give it have caused to be read from disks (proc_pid_io(5))."""
    found = {}
    for pid in list(c.pids(job).values()) + [p.pid for p in c.started.values()]:
        with open(f"/proc/{pid}/io") as h:
            found[pid] = int(re.search(r"^read_bytes: (\d+)", h.read(), re.M)[1])
    return found


def quickstart(build):
    with Bare(build, nodes=4, devices=2, controller=["--lease-ttl", "10s"]) as c:
        folder = c.home + "/ckpt"
        job = c.submit(os.path.join(ROOT, "examples/quickstart.yaml"), "--set", f"checkpoint.dir={folder}", "--set", "checkpoint.every_steps=5")
        wait_for("a commit", lambda: c.json("ckpt", "ls", str(job))["checkpoints"], 60)
        c.wait_step(job, 12)
        name, before = nodes_of(c, job)[2], disk_reads(c, job)
        os.rename(folder, folder + ".away")
        c.kill_node(name)
        c.start_worker(name)
        told = wait_for("the recovery", lambda: recovered(c, job, 0), 60)[-1]["text"]
        resumed = [e for e in c.events(job)["events"] if e["kind"] == "resumed"][-1]
        after = disk_reads(c, job)
        if "slices: 6 from their own node's memory, 2 from peers'" not in resumed["text"] or "0 from disk" not in resumed["text"]:
            raise Failure(f"found '{resumed['text']}', expected 6 slices from their own node's memory, 2 from peers' and none from disk")
        read = {pid: n - before.get(pid, 0) for pid, n in after.items() if n != before.get(pid, 0)}
        if read or resumed["ms"] > 1000 * SLOWDOWN:
            raise Failure(f"found {resumed['ms']:.0f} ms and reads {read}, expected less than 1 s and no reads from disks")
        print(f"ok  quickstart: {name} lost, {told}; {resumed['text']}; restored in {resumed['ms']:.0f} ms, 0 bytes read from disks by {len(after)} processes", flush=True)
        c.ctl("cancel", str(job))


def main():
    if "--quickstart" in sys.argv[2:]:
        quickstart(sys.argv[1])
        return
    with Bare(sys.argv[1], nodes=5, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "lost", *paced(60))
        c.wait_step(job, 6)
        places = nodes_of(c, job)
        spare = next(f"node-{i}" for i in range(5) if f"node-{i}" not in places.values())
        lose(c, job, places[2], False)
        if set(nodes_of(c, job).values()) != set(places.values()) - {places[2]} | {spare}:
            raise Failure(f"placement: {places} became {nodes_of(c, job)}, expected {spare} in place of {places[2]}")
        c.wait_step(job, c.step(job) + 3)
        lose(c, job, places[4], True)
        c.wait_done(job)
        compare("lost", want, c.final(job))
        print(f"ok  {len(want)} steps equal bit for bit after two lost nodes", flush=True)


if __name__ == "__main__":
    run_script("node_loss", main)
