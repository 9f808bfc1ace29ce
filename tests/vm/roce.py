#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`roce.py BUILD DEVICE LINK`, in the guest: what two nodes say of their RDMA device. It is listed; its link LINK goes down and comes back: seen at once, and nothing is done about it; pairs are measured by RDMA; a
counter over its threshold twice is two alerts, and the nodes are drained."""
import fcntl
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from bare import Bare  # noqa: E402
from cluster import Failure, wait_for  # noqa: E402

NODES = ("node-0", "node-1")
FLAPS = 5
WITHIN_S = 1.0
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1 # linux/sockios.h, linux/if.h


def check(c, node, name, subject):
    return next((k for k in c.json("node", "describe", node)["checks"] if (k["check"], k["subject"]) == (name, subject)), None)


def verdict(c, node, name, subject):
    return (check(c, node, name, subject) or {"verdict": None})["verdict"]


def turn(link, up):
    """By a system call: a program takes long to start where there is no KVM."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        flags = struct.unpack("16sH", fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sH14x", link.encode(), 0))[:18])[1]
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", link.encode(), flags | IFF_UP if up else flags & ~IFF_UP))


def seen(c, port, link, up):
    """Seconds from the link's change until the controller has it (`fp8ctl node get` answers with it from then on), and until a `node get` that was started again and again has shown it."""
    at, wall = time.monotonic(), time.time()
    turn(link, up)
    wait_for(f"{link} {'up' if up else 'down'} to be seen", lambda: verdict(c, NODES[0], "ib-port", port) == ("ok" if up else "warn"), 30, 0.01)
    shown = time.monotonic() - at
    wait_for("the other node to see it", lambda: verdict(c, NODES[1], "ib-port", port) == ("ok" if up else "warn"), 30, 0.01)
    kind = "node_well" if up else "node_unwell"
    told = max(e["unix_ms"] for e in c.json("events")["events"] if e["kind"] == kind and port in e["text"] and e["node"] == NODES[0]) / 1e3 - wall
    return told, shown


def well(c, what):
    for n in NODES:
        g = c.json("node", "get", n)
        if (g["health"], g["duty"]) != ("ok", "open"):
            raise Failure(f"{what}: {n} is {g['health']}, {g['duty']} ({g['health_reason']}), expected it to be ok and open")
    bad = [e for e in c.json("events")["events"] if e["kind"] in ("network_alert", "node_evicted")]
    if bad:
        raise Failure(f"{what}: found {bad[0]['text']}")


def said(c, build, device, port):
    """Rate and GID in the evidence are those that libibverbs knows."""
    evidence = check(c, NODES[0], "ib-port", port)["evidence"]
    m = re.fullmatch(r"4: ACTIVE, ([0-9.]+) Gb/sec \(.*\), GID ([0-9]+) (\S+) \(RoCE v2\)", evidence)
    if not m:
        raise Failure(f"the port's evidence: found {evidence!r}, expected a rate and a GID of RoCE v2")
    verbs = subprocess.run([build + "/tests/vm/rnr", device, m.group(2), "port"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    if verbs != [m.group(1), m.group(3)]:
        raise Failure(f"the port's evidence: found {evidence!r}, libibverbs says {verbs}")
    print(f"FIGURE: {port}: {evidence}", flush=True)


def flaps(c, port, link):
    times = {False: [], True: []}
    for _ in range(FLAPS):
        for up in (False, True):
            times[up].append(seen(c, port, link, up))
    well(c, f"{FLAPS} short flaps")
    for up, t in times.items():
        told, shown = ([x[i] for x in t] for i in (0, 1))
        print(f"FIGURE: port {'up' if up else 'down'}: the controller answers with it after {statistics.median(told):.3f} s (median of {FLAPS}, most {max(told):.3f}); shown by a `fp8ctl node get` after "
              f"{statistics.median(shown):.3f} s, the program's start included", flush=True)
        if statistics.median(told) >= WITHIN_S:
            raise Failure(f"{told} s, expected less than {WITHIN_S} s")


def pair(c):
    t = c.json("node", "test", "--pairwise", *NODES)
    p = t["pairs"][0]
    if not p["rdma"] or not p["gbs"]:
        raise Failure(f"found {p}, expected a bandwidth by RDMA")
    print(f"FIGURE: a pair of nodes by RDMA: {p['gbs']:.3f} GB/s, {p['latency_us']:.0f} us", flush=True)


def counter(c, build, device, port):
    for n in NODES:
        wait_for("the counters to be known", lambda n=n: verdict(c, n, "ib-counters", port) == "ok", 30, 0.2)
    time.sleep(6) # once more than they are looked at
    subprocess.run([build + "/tests/vm/rnr", device, "1"], check=True)
    for n in NODES:
        wait_for("the counter to be seen", lambda n=n: verdict(c, n, "ib-counters", port) == "evict", 30, 0.2)
    said = check(c, NODES[0], "ib-counters", port)["evidence"]
    if any(c.json("node", "get", n)["duty"] != "open" for n in NODES):
        raise Failure("one alert took a node's ranks away, expected that two do")
    time.sleep(6)
    subprocess.run([build + "/tests/vm/rnr", device, "1"], check=True)
    for n in NODES:
        wait_for("the second alert", lambda n=n: (c.json("node", "get", n)["health"], c.json("node", "get", n)["duty"] != "open") == ("evict", True), 30, 0.2)
    print(f"FIGURE: a counter over its threshold: {said}; again: {c.json('node', 'get', NODES[0])['health_reason']}", flush=True)


def main():
    build, device, link = sys.argv[1:]
    port = f"{device}/1"
    with Bare(build, nodes=2, devices=1, controller=["--health-share", "100"]) as c:
        for n in NODES:
            wait_for(f"{port} on {n}", lambda n=n: verdict(c, n, "ib-port", port) == "ok", 60, 0.2)
        said(c, build, device, port)
        flaps(c, port, link)
        pair(c)
        counter(c, build, device, port)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
