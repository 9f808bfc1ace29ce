#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`rescue.py BUILD`: a node is lost for which there is no other, the job waits for devices, and when they are back it goes on from what replica memory had, bit for bit.

Four nodes of two devices, a job of eight ranks that never saves.  Before it leaves its devices the survivors' nodes write what they have of the newest step, their own ranks' and the lost ones' second copies.
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, Failure, compare, run_script, wait_for  # noqa: E402

STEPS = 26
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=0",
                    "--set", "checkpoint.at_end=false", *more)


def main():
    with Bare(sys.argv[1], nodes=4, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "lost", "--set", "test.slow_ms=30")
        c.wait_step(job, 10)
        c.kill_node("node-2")
        wait_for("the job to wait for devices", lambda: c.json("get", str(job))["state"] == "PENDING", 60)
        events = c.events(job)["events"]
        said = [e["text"] for e in events if e["kind"] == "requeued"]
        found = re.search(r"goes on from step (\d+)$", said[-1]) if said else None
        if not found or int(found[1]) == 0 or not any(e["kind"] == "saving_memory" for e in events):
            raise Failure(f"found {said}, expected that it goes on from a step that only memory had")
        saved = c.json("ckpt", "ls", str(job))["checkpoints"]
        if len(saved) != 1 or c.ctl("ckpt", "verify", saved[0]["path"], check=False).returncode != 0:
            raise Failure(f"found checkpoints {saved}, expected one that verifies")
        print(f"ok  {said[-1]}", flush=True)
        c.start_worker("node-2")
        c.wait_done(job)
        compare("lost", want, c.final(job))
        print(f"ok  {len(want)} steps equal bit for bit", flush=True)


if __name__ == "__main__":
    run_script("rescue", main)
