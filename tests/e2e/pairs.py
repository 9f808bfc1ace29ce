#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`pairs.py BUILD`: four nodes, each a network namespace, measure what is between them; the one behind a slow cable is named, then one whose worker stands still; a link that is cut is told. What else a busy machine makes slow is not looked at. Needs root, ip, nsenter and nft."""
import json
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from cluster import Failure, run_script, wait_for  # noqa: E402
from netns import NetCluster, missing  # noqa: E402

NODES = ["node-0", "node-1", "node-2", "node-3"]


def measure(c):
    p = c.ctl("node", "test", "--pairwise", "--all-pairs", *NODES, "-o", "json", check=False)
    if p.returncode not in (0, 1):
        raise Failure(f"node test --pairwise: exit {p.returncode}: {p.stderr}")
    t = json.loads(p.stdout)
    print(f"    {t['rounds']} rounds in {t['ms'] / 1e3:.1f} s, {t['usual_gbs']:.2f} GB/s is usual; slow: {t['slow_nodes']}, {t['slow_links']} links", flush=True)
    return p.returncode, t


def of(t, *names):
    return [f for f in t["pairs"] if set(names) <= {f["a"], f["b"]}]


def main():
    with NetCluster(sys.argv[1], nodes=4, devices=1, controller=["--lease-ttl", "60s"]) as c:
        _, t = measure(c)
        if len(t["pairs"]) != 6 or any(f["gbs"] is None for f in t["pairs"]):
            raise Failure(f"a whole network: {t}")
        print("ok  six pairs measured", flush=True)
        c.drop("node-2", "output", "tcp dport != 7411 limit rate over 10 mbytes/second burst 1 mbytes")
        code, t = measure(c)
        if code != 1 or "node-2" not in t["slow_nodes"] or not all(f["slow"] for f in of(t, "node-2")):
            raise Failure(f"a slow cable: found {t}")
        if not any(e["kind"] == "node_pairs" and "node-2" in e["text"] for e in c.json("events")["events"]):
            raise Failure("a slow cable: no event names it")
        print("ok  a slow cable: its node is named", flush=True)
        c.heal()
        c.started["node-3"].send_signal(signal.SIGSTOP)
        code, t = measure(c)
        c.started["node-3"].send_signal(signal.SIGCONT)
        if code != 1 or "node-3" not in t["slow_nodes"] or not all(f["gbs"] is None and "in time" in f["error"] for f in of(t, "node-3")):
            raise Failure(f"a worker that stands still: found {t}")
        print("ok  a worker that stands still was not to be had", flush=True)
        wait_for("node-3 to be back", lambda: c.json("node", "get", "node-3")["reason"] is None, 30)
        c.cut("node-0", "node-1")
        code, t = measure(c)
        if code != 1 or [f["error"] is None for f in t["pairs"]].count(False) != 1 or not of(t, "node-0", "node-1")[0]["error"]:
            raise Failure(f"a link that is cut: found {t}")
        print("ok  a link that is cut was not to be had, the others were", flush=True)


if __name__ == "__main__":
    run_script("pairs", main, missing())
