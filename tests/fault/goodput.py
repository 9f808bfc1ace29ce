#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`goodput.py BUILD`: what `fp8ctl goodput` says of a job that goes on with fewer replicas, whose node is drained, or that makes way for another, against what is computed outside."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ENDLESS, ROOT, SMALL, Failure, paced, run_script, wait_for  # noqa: E402


def submit(c, name, *more):
    return c.submit(os.path.join(ROOT, "tests/fault/job.yaml"), "--name", name, *SMALL, *ENDLESS, *paced(80), "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "parallel.pp=1",
                    "--set", "recovery.min_dp=1", "--set", "recovery.grow_delay_ms=500", *more)


def wait_running(c, job, dp):
    wait_for(f"dp {dp}", lambda: (lambda j: j["dp"] == dp and j["state"] == "RUNNING")(c.json("get", str(job))), 30)
    c.wait_step(job, c.step(job) + 6)


def longest_pause(c, job):
    rows = sorted(c.final(job).values(), key=lambda r: r["step"])
    return max(b["t"] - a["t"] for a, b in zip(rows, rows[1:]))


def ended(c, name, job, waited):
    """It must have waited for devices, or not; what it waited lies within the longest pause between two of its steps."""
    c.end(job)
    g = c.check_goodput(job)
    if (g["waiting_s"] > 0) != waited or g["waiting_s"] > longest_pause(c, job):
        raise Failure(f"{name}: found {g}, expected {'some' if waited else 'no'} waiting, and no more than the longest pause of {longest_pause(c, job):.2f} s")
    print(f"ok  {name}: {g['productive_s']:.2f} s productive, {g['recovering_s']:.2f} s recovering, {g['waiting_s']:.2f} s waiting, {g['lost_s']:.2f} s lost of {g['wall_s']:.2f} s", flush=True)


def main():
    with Bare(sys.argv[1], nodes=4, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"]) as c:
        job = submit(c, "shrunk", "--set", "parallel.dp=4")
        c.wait_step(job, 10)
        c.kill_node("node-2")
        wait_running(c, job, 2)
        c.start_worker("node-2")
        wait_running(c, job, 4)
        ended(c, "fewer replicas and all again", job, False)

        job = submit(c, "drained", "--set", "parallel.dp=2")
        c.wait_step(job, 10)
        where = c.describe(job)["plan"]["ranks"][0]["node"]  # whose rank reports: its rows stay on the node that wrote them
        c.ctl("node", "drain", where)
        wait_for("its ranks to move", lambda: where not in [r["node"] for r in c.describe(job)["plan"]["ranks"]], 30)
        wait_running(c, job, 2)
        c.ctl("node", "uncordon", where)
        printed = [r["step"] for r in c.json("metrics", str(job))["rows"]]
        if printed != list(range(1, len(printed) + 1)):
            raise Failure(f"found metrics of steps {printed[:3]} to {printed[-1]}, {len(printed)} rows, expected every step from the first on")
        ended(c, "a drained node", job, False)

        job = submit(c, "makes-way", "--set", "parallel.dp=4", "--set", "recovery.min_dp=4")
        c.wait_step(job, 10)
        other = submit(c, "first", "--set", "parallel.dp=4", "--set", "priority=10")
        c.wait_step(other, 10)
        c.end(other)
        wait_running(c, job, 4)
        ended(c, "makes way for a job of higher priority", job, True)


if __name__ == "__main__":
    run_script("goodput", main)
