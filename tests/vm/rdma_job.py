#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`rdma_job.py BUILD DEVICE`, in the guest: a job on two nodes whose second copies go by RDMA; the device's link goes down while it trains: sockets take over, the job completes."""
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from cluster import Cluster, Failure, wait_for  # noqa: E402


def counters(device):
    """Soft-RoCE's own (hw_counters): packets out and in."""
    c = {}
    for name in ("sent_pkts", "rcvd_pkts"):
        with open(f"/sys/class/infiniband/{device}/ports/1/hw_counters/{name}") as f:
            c[name] = int(f.read())
    return c


def main():
    build, device = sys.argv[1:]
    with Cluster(build, nodes=2, devices=1) as c:
        before = counters(device)
        job = c.submit(os.path.join(ROOT, "tests/fault/job.yaml"), "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", "train.steps=24", "--set", "train.global_batch=2", "--set", "train.micro_batch=1",
                       "--set", "data.seq_len=32", "--set", f"checkpoint.dir={c.home}/ckpt",
                       "--set", "checkpoint.every_steps=0", "--set", "checkpoint.at_end=false")
        wait_for("step 6", lambda: c.step(job) >= 6, 120, 0.2) # from its files: the guest has little time to spare
        moved = {k: v - before[k] for k, v in counters(device).items()}
        if min(moved.values()) < 100:
            raise Failure(f"{device} moved {moved}, expected hundreds of packets by step 6")
        print(f"FIGURE: by step {c.step(job)} {device} had moved {moved['sent_pkts']} packets", flush=True)
        subprocess.run(["ip", "link", "set", "d0", "down"], check=True)
        at = c.step(job)
        c.ctl("wait", str(job), timeout=120)
        events = c.events(job)["events"]
        lost = [e for e in events if e["kind"] == "replica_lane_lost"]
        if not lost:
            raise Failure(f"no event replica_lane_lost: the link went at step {at}")
        print(f"FIGURE: link down at step {at}, then: {lost[0]['text']}", flush=True)
        for f in sorted(glob.glob(f"{c.home}/nodes/*/jobs/{job}/rank*.log")):
            with open(f) as h:
                m = re.search(r"second copies of (\d+) snapshots delivered \((\d+) bytes, (\d+) by RDMA; given up (\d+) times\), (\d+) not", h.read())
            if not m:
                raise Failure(f"{f} says nothing of second copies")
            n, total, lane, falls, missed = (int(x) for x in m.groups())
            print(f"FIGURE: {os.path.basename(f)[:-4]}: {m[0]}", flush=True)
            if not 0 < lane < total or falls < 1 or missed:
                raise Failure(f"{m[0]}: expected some by RDMA, some by sockets, and none missing")
        if [e for e in events if e["kind"] == "replica_missing"]:
            raise Failure("a snapshot had no second copy")


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
