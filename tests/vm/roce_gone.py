#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`roce_gone.py BUILD DEVICE LINK`, in the guest: two nodes' RDMA device is taken away while it is open. The kernel waits until nobody holds it any more, so that `rdma link delete` ends says that all have let go."""
import subprocess
import sys
import time

from roce import NODES, check, pair, verdict, well
from bare import Bare
from cluster import Failure, wait_for

LET_GO_S = 10


def alive(c, what):
    for n in NODES:
        if c.started[n].poll() is not None:
            raise Failure(f"{what}: {n}'s worker ended with {c.started[n].returncode}")
    states = [n["state"] for n in c.json("node", "list")["nodes"]]
    if states != ["ready"] * len(NODES):
        raise Failure(f"{what}: found nodes {states}")


def taken_away(c, device, port):
    at = time.monotonic()
    p = subprocess.Popen(["rdma", "link", "delete", device]) # cannot be killed while it waits
    wait_for(f"nobody to hold {device} any more", lambda: p.poll() == 0, LET_GO_S, 0.05)
    took = time.monotonic() - at
    for n in NODES:
        wait_for(f"{n} to say so", lambda n=n: verdict(c, n, "ib-port", port) == "warn" and "its device is gone" in check(c, n, "ib-port", port)["evidence"], 10, 0.1)
    alive(c, "the device was taken away")
    t = c.json("node", "test", "--pairwise", *NODES)["pairs"][0]
    if t["rdma"] or not t["gbs"]:
        raise Failure(f"without the device: found {t}, expected a bandwidth by TCP")
    print(f"FIGURE: {device} was taken away in {took:.2f} s under two workers; then {t['gbs']:.3f} GB/s by TCP", flush=True)


def main():
    build, device, link = sys.argv[1:]
    port = f"{device}/1"
    with Bare(build, nodes=len(NODES), devices=1) as c:
        for again in range(2):
            for n in NODES:
                wait_for(f"{port} on {n}", lambda n=n: verdict(c, n, "ib-port", port) == "ok", 60, 0.2)
            pair(c)
            taken_away(c, device, port)
            subprocess.run(["rdma", "link", "add", device, "type", "rxe", "netdev", link], check=True)
        for n in NODES:
            wait_for(f"{port} on {n}", lambda n=n: verdict(c, n, "ib-port", port) == "ok", 60, 0.2)
        alive(c, "the device is back")
        well(c, "the device went and came")


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
