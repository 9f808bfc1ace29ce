#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`local_disk.py BUILD`: every node loses power at once. Replica memory is gone everywhere; what is left are the nodes' own disks and the job's directory.

First all come back with whole disks: the job goes on from the newest copy that all of them have, newer than the last commit.  Then again, and one copy has a flipped
bit: it is told, and the job goes on from its last commit.  Bit for bit in both cases, and when the job is over nothing of it is left on the disks.
"""
import glob
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, compare, paced, wait_for  # noqa: E402

STEPS, NODES, EVERY = 30, 2, 3
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, "--set", "parallel.tp=1", "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}",
                    "--set", "checkpoint.every_steps=10", "--set", "checkpoint.at_end=false", *more)


def kinds(c, job, kind):
    return [e for e in c.events(job)["events"] if e["kind"] == kind]


def copies(c, rank):
    """Steps of a rank's whole copies."""
    found = glob.glob(f"{c.home}/nodes/*/local/*/rank-{rank:05d}/step_*/manifest.json")
    return sorted(int(re.search(r"step_(\d+)", f)[1]) for f in found)


def whole(c):
    """The newest step of which every rank has a copy; 0: none."""
    return max(set.intersection(*[set(copies(c, r)) for r in range(4)]), default=0)


def newest_commit(c, job):
    return max(k["step"] for k in c.json("ckpt", "ls", str(job))["checkpoints"])


def power_cut(c, job, hurt=None):
    """All nodes off and on again: the newest copy, the newest commit, and the event that tells of the recovery."""
    before = len(kinds(c, job, "recovered"))
    for i in range(NODES):
        c.kill_node(f"node-{i}")
    had, commit = whole(c), newest_commit(c, job)
    if hurt:
        hurt(had)
    for i in range(NODES):
        c.start_worker(f"node-{i}")
    return had, commit, wait_for("the recovery", lambda: kinds(c, job, "recovered")[before:], 60)[-1]["text"]


def flip(c, rank):
    def hurt(step):
        for copy in glob.glob(f"{c.home}/nodes/*/local/*/rank-{rank:05d}/step_*"):  # an older or a newer one may be there still, or already
            if f"/step_{step:08d}." not in copy:
                shutil.rmtree(copy)
        path = glob.glob(f"{c.home}/nodes/*/local/*/rank-{rank:05d}/step_{step:08d}.*/shard-*.safetensors")[0]
        with open(path, "r+b") as h:
            h.seek(-1000, os.SEEK_END)
            byte = h.read(1)
            h.seek(-1000, os.SEEK_END)
            h.write(bytes([byte[0] ^ 4]))
    return hurt


def main():
    with Bare(sys.argv[1], nodes=NODES, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "10s"]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "lost", *paced(120), "--set", f"checkpoint.local_every={EVERY}", "--set", "checkpoint.local_keep=1")
        c.wait_step(job, 14)
        wait_for("copies past the first commit", lambda: whole(c) >= 12, 30)
        had, commit, told = power_cut(c, job)
        step = int(re.search(r"resuming from step (\d+)", told)[1])
        if "from copies on the nodes' disks" not in told or step != had or step <= commit:
            raise Failure(f"found '{told}', expected step {had} from copies on the nodes' disks; the newest commit was {commit}")
        resumed = kinds(c, job, "resumed")[-1]["text"]
        if "4 from their own node's disk, 0 from disk" not in resumed:
            raise Failure(f"found '{resumed}', expected 4 slices from their own node's disk")
        print(f"ok  all nodes off and on: {told}", flush=True)
        wait_for("a copy past the second commit", lambda: newest_commit(c, job) == 20 and whole(c) >= 21, 30)
        had, _, told = power_cut(c, job, flip(c, 3))
        rejected = kinds(c, job, "local_copy_rejected")
        if "from the checkpoint of step 20" not in told or had <= 20 or len(rejected) != 1 or rejected[0]["rank"] != 3 or "found digest" not in rejected[0]["text"]:
            raise Failure(f"found '{told}' and {rejected}, expected the copy of step {had} of rank 3 to be refused and the checkpoint of step 20 to be loaded")
        print(f"ok  one copy with a flipped bit: {rejected[0]['text']}; {told}", flush=True)
        c.wait_done(job)
        compare("lost", want, c.final(job))
        last = c.rows(job)[-1]
        if last["local_copies"] < 1:
            raise Failure(f"found {last}, expected copies to be counted")
        wait_for("the disks to be cleared", lambda: not glob.glob(f"{c.home}/nodes/*/local/*"), 10)
        print(f"ok  {len(want)} steps equal bit for bit, nothing left on the disks", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"local_disk: {e}")
