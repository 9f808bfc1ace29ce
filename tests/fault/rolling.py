#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`rolling.py BUILD [--rounds N]`: every worker (SIGHUP) and the controller (SIGTERM, started again) are replaced under a live job of eight ranks, one after the other.

No rank ends, no step is lost or done twice, the losses are those of an undisturbed run; the longest pause between two steps is given.
"""
import argparse
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ENDLESS, ROOT, SMALL, Failure, compare, median, paced, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, *ENDLESS, "--set", f"checkpoint.dir={c.home}/ckpt-{name}", *more)


def renewed(c, node):
    """It was told to begin anew and is a ready node under another incarnation."""
    def incarnation():
        return next((n["incarnation"] for n in c.json("node", "list")["nodes"] if n["name"] == node and n["state"] == "ready"), None)

    before = incarnation()
    os.kill(c.daemon_pid(node), signal.SIGHUP)
    wait_for(f"{node} to be back", lambda: incarnation() not in (None, before), 20)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build")
    a.add_argument("--rounds", type=int, default=1)
    args = a.parse_args()
    with Bare(args.build, nodes=4, devices=2, controller=["--allow-test-hooks"]) as c:
        job = submit(c, "live", *paced(40))
        c.wait_step(job, 3)
        before, pids = time.time(), c.pids(job)
        for _ in range(args.rounds):
            for i in range(c.nodes):
                renewed(c, f"node-{i}")
            if c.stop("fp8d") != 0:
                raise Failure("fp8d did not end in order")
            c.start_controller()
        if c.job(job)["state"] == "RUNNING" and c.pids(job) != pids:
            raise Failure(f"found ranks {c.pids(job)}, expected those of before: {pids}")
        during = c.step(job)
        c.wait_step(job, during + 10)
        steps = c.end(job)
        rows, j = c.rows(job), c.job(job)
        if len(rows) != steps or j["restarts"] or j["lost_steps"]:
            raise Failure(f"found {len(rows)} rows, {j['restarts']} recoveries and {j['lost_steps']} steps lost, expected {steps}, 0 and 0")
        compare("rolling", c.undisturbed(submit(c, "calm"), steps), c.final(job))
        gaps = [b["t"] - a["t"] for a, b in zip(rows, rows[1:]) if b["t"] > before]
        print(f"ok  {args.rounds} rounds: {c.nodes} workers and the controller replaced under a live job by step {during} of {steps}, no step lost or done twice, bitwise; "
              f"longest pause {max(gaps):.3f} s, a step {median(gaps):.3f} s")


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        print(f"rolling: {e}", file=sys.stderr)
        sys.exit(1)
