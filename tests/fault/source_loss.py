#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`source_loss.py BUILD SHIM`: a node is lost, comes back empty and gets its slices from a peer; that peer stops in the middle of giving them and is lost as well.

Then nobody has these slices of the newest snapshot, and the job goes on from its newest commit, bit for bit.
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, Failure, compare, wait_for  # noqa: E402

STEPS, NODES = 24, 4
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=4",
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


def main():
    with Watched(sys.argv[1], sys.argv[2]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "lost", "--set", "test.slow_ms=30")
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
        os.remove(c.mark)
        c.kill_node(source)
        c.start_worker(source)
        told = wait_for("the recovery", lambda: kinds(c, job, "recovered"), 60)[-1]["text"]
        plans = [e["text"] for e in kinds(c, job, "plan")]
        if len(plans) < 2 or "slices from peers" not in plans[-2] or "from the checkpoint of step" not in plans[-1]:
            raise Failure(f"found plans {plans}, expected one of slices from peers and then one from a checkpoint")
        newest = max(k["step"] for k in c.json("ckpt", "ls", str(job))["checkpoints"])
        c.wait_done(job)
        compare("lost", want, c.final(job))
        print(f"ok  {first} lost at step {stood} or later, {source} while it gave its copy: {told}; {len(want)} steps equal bit for bit, newest commit then {newest}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"source_loss: {e}")
