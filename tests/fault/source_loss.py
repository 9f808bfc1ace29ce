#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`source_loss.py BUILD SHIM`: a node is lost, comes back empty and gets its slices from a peer; that peer stops in the middle of giving them and is lost as well.

Then nobody has these slices of the newest snapshot, and the job goes on from its newest commit, bit for bit.

And copies that are damaged where they lie: a rank's own, whose place a peer's takes; then those that a lost node's peers keep, when the newest commit is what is left.
"""
import os
import re
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, compare, paced, wait_for  # noqa: E402
import replica_memory  # noqa: E402

STEPS, NODES = 48, 4
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=8",
                    "--set", "checkpoint.at_end=false", *more)


def kinds(c, job, kind):
    return [e for e in c.events(job)["events"] if e["kind"] == kind]


class Watched(Bare):
    def __init__(self, build, shim):
        super().__init__(build, nodes=NODES, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"])
        self.mark = self.home + "/stand-still"
        # The address sanitizer wants to be the first library.
        asan = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
        self.env = {f"node-{i}": {"LD_PRELOAD": shim, "FP8_TEST_SOURCE": self.mark, "ASAN_OPTIONS": asan} for i in range(NODES)}

    def source(self):
        try:
            with open(self.mark + ".pid") as h:
                pid = int(h.read())
        except FileNotFoundError:
            return None
        return next((n for n, p in self.started.items() if p.pid == pid), None)


class still:
    """All ranks of a job stand still: nothing is written over."""
    def __init__(self, c, job):
        self.pids = c.pids(job)

    def __enter__(self):
        for pid in self.pids.values():
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.05)  # what is on its way to a peer arrives
        return self

    def __exit__(self, *a):
        for pid in self.pids.values():
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


def told_of(c, job):
    return len(kinds(c, job, "recovered")), len(kinds(c, job, "replica_rejected"))


def recovery(c, job, before, hurt, node):
    """Waits for it; its text. The damage must have been told, by this node, of a snapshot that was hurt. before: events of these kinds there were."""
    before, rejected = before
    told = wait_for("the recovery", lambda: kinds(c, job, "recovered")[before:], 60)[-1]["text"]
    rejected = [e for e in kinds(c, job, "replica_rejected")[rejected:] if (not node or e["node"] == node) and re.search("(does not match its|do not match their) digest", e["text"])]
    steps = {int(re.search(r"step (\d+)", e["text"])[1]) for e in rejected}
    if not rejected or not steps <= {s for _, s in hurt}:
        raise Failure(f"found {kinds(c, job, 'replica_rejected')}, expected {node or 'a peer'} to tell of damaged snapshots out of {hurt}")
    return told


def own_damaged(c, job, rank):
    before, node = told_of(c, job), c.describe(job)["plan"]["ranks"][rank]["node"]
    with still(c, job) as s:
        hurt = replica_memory.flip(f"/proc/{s.pids[rank]}/fd/{replica_memory.RANK_FD}")
        os.kill(s.pids[rank], signal.SIGKILL)
    told = recovery(c, job, before, hurt, node)
    sources = kinds(c, job, "resumed")[-1]["text"]
    if "1 from peers" not in sources:
        raise Failure(f"found '{told}', '{sources}', expected the peer's copy of rank {rank}")
    print(f"ok  rank {rank}'s own snapshots {sorted(x for _, x in hurt)} damaged: {told}", flush=True)


def all_damaged(c, job, rank):
    """Those of a node that is lost, at its peers."""
    before, ranks = told_of(c, job), c.describe(job)["plan"]["ranks"]
    node = ranks[rank]["node"]
    lost = {r["rank"] for r in ranks if r["node"] == node}
    with still(c, job):
        hurt = [x for n, p in c.started.items() if n not in ("fp8d", node) for f in replica_memory.segments(p.pid) for x in replica_memory.flip(f, lambda r, n_slots: r in lost and n_slots == 2)]
        c.kill_node(node)
    commit = max(k["step"] for k in c.json("ckpt", "ls", str(job))["checkpoints"])
    c.start_worker(node)
    told = recovery(c, job, before, hurt, None)
    if not {r for r, _ in hurt} == lost or f"from the checkpoint of step {commit}" not in told:
        raise Failure(f"found '{told}', damaged {hurt}: expected the checkpoint of step {commit} to be loaded")
    print(f"ok  copies {hurt} of {node}'s ranks damaged at their peers: {told}", flush=True)


def main():
    with Watched(sys.argv[1], sys.argv[2]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "lost", *paced(80))
        c.wait_step(job, 9)
        wait_for("a commit of step 8", lambda: any(k["step"] == 8 for k in c.json("ckpt", "ls", str(job))["checkpoints"]), 30)
        first = c.describe(job)["plan"]["ranks"][0]["node"]
        stood = c.step(job)
        c.kill_node(first)
        with open(c.mark, "w"):
            pass
        c.start_worker(first)
        source = wait_for("a peer to begin with giving its copy", c.source, 30)
        if source == first or kinds(c, job, "recovered"):
            raise Failure(f"{source} gives a copy to {first}: expected a peer, in the middle of a recovery")
        c.kill_node(source)
        os.remove(c.mark)
        c.start_worker(source)
        told = wait_for("the recovery", lambda: kinds(c, job, "recovered"), 60)[-1]["text"]
        plans = [e["text"] for e in kinds(c, job, "plan")]
        if len(plans) < 2 or "slices from peers" not in plans[-2] or "from the checkpoint of step" not in plans[-1]:
            raise Failure(f"found plans {plans}, expected one of slices from peers and then one from a checkpoint")
        at = c.step(job) + 5  # peers have copies again,
        c.wait_step(job, at + (3 - at) % 8)  # newer than the newest commit
        own_damaged(c, job, 5)
        c.wait_step(job, c.step(job) + 3)
        all_damaged(c, job, 2)
        newest = max(k["step"] for k in c.json("ckpt", "ls", str(job))["checkpoints"])
        c.wait_done(job)
        compare("lost", want, c.final(job))
        print(f"ok  {first} lost at step {stood} or later, {source} while it gave its copy: {told}; {len(want)} steps equal bit for bit, newest commit {newest}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"source_loss: {e}")
