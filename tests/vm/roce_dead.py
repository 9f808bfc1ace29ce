#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`roce_dead.py BUILD DEVICE LINK`, in the guest: one of two nodes has the RDMA device, and a job; the link goes down for good. For as long as NCCL tries again nothing is done; after four minutes the node is evicted."""
import os
import sys
import time

from roce import check, turn, verdict
from bare import Bare
from cluster import ROOT, SMALL, Failure, paced, wait_for

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
RETRIES_S = (7 + 1) * 4.096e-6 * 2 ** 22 # nccl.ib_retry_cnt, nccl.ib_timeout (docs/job-file.md)
DEAD_S = 240
LATE_S = 5 # 0.5 s between two looks, and a slow machine


class Nodes(Bare):
    def start_worker(self, name, *extra):
        if name != "node-0": # a machine without such devices
            root = f"{self.home}/{name}.root"
            os.makedirs(root, exist_ok=True)
            extra = (*extra, "--health-root", root, "--rdma", "off")
        return super().start_worker(name, *extra)


def where(c, job):
    d = c.describe(job)
    return {r["node"] for r in (d.get("plan") or d["job"]["plan"])["ranks"]}


def main():
    build, device, link = sys.argv[1:]
    port = f"{device}/1"
    with Nodes(build, nodes=2, devices=1, controller=["--health-share", "100", "--allow-test-hooks"]) as c:
        wait_for(port, lambda: verdict(c, "node-0", "ib-port", port) == "ok", 60, 0.2)
        c.ctl("node", "cordon", "node-1")
        job = c.submit(JOB, *SMALL, *paced(500), "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", "parallel.dp=1", "--set", "train.steps=100000", "--set", "checkpoint.every_steps=0",
                       "--set", f"checkpoint.dir={c.home}/ckpt")
        c.wait_step(job, 2)
        c.ctl("node", "uncordon", "node-1")
        at, wall = time.monotonic(), time.time()
        turn(link, False)
        wait_for("the port to be down", lambda: verdict(c, "node-0", "ib-port", port) == "warn", 30, 0.05)
        while time.monotonic() - at < DEAD_S - 10:
            time.sleep(5)
            n = c.json("node", "get", "node-0")
            if (n["duty"], n["health"]) != ("open", "warn") or where(c, job) != {"node-0"}:
                raise Failure(f"{time.monotonic() - at:.0f} s after the link went down: found {n['duty']}, {n['health']}, ranks on {where(c, job)}, expected it to be ridden out")
        evicted = wait_for("the node to be evicted", lambda: next((e for e in c.json("events")["events"] if e["kind"] == "node_evicted"), None), 30, 0.2)
        after = evicted["unix_ms"] / 1e3 - wall
        if not DEAD_S <= after < DEAD_S + LATE_S or "for more than 4 minutes" not in evicted["text"] or evicted["node"] != "node-0":
            raise Failure(f"after {after:.1f} s: {evicted}")
        wait_for("its job to run on the other node", lambda: where(c, job) == {"node-1"}, 60, 0.2)
        step = c.step(job)
        wait_for("a step there", lambda: c.step(job) > step + 1, 60, 0.5)
        evidence = check(c, "node-0", "ib-port", port)["evidence"]
        print(f"FIGURE: a dead port: ridden out for {RETRIES_S:.0f} s and more, evicted after {after:.1f} s ({evidence}); its job went on on node-1", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
