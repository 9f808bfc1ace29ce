# SPDX-License-Identifier: Apache-2.0
"""Faults of the network and of several nodes at once, for table.py: on a NetCluster (tests/netns.py), the nodes of a rack as namespaces."""
import subprocess
import threading
import time

from blow import NotHere, Run, ordinary
from cluster import Failure
import netns

LEASE_S = 3.2
CONTROLLER = ["--allow-test-hooks", "--lease-ttl", f"{int(LEASE_S * 1000)}ms", "--heartbeat", "300ms"]
# Long enough for a lease to run out in the middle, at 40 ms a step and more.
LONG = ("--set", "test.slow_ms=40")


def cluster(build):
    absent = netns.missing()
    if absent:
        raise NotHere(absent)
    return netns.NetCluster(build, nodes=6, devices=2, controller=CONTROLLER)


def healed(fault):
    """The network is whole again after it, whatever happened, and every node is back before the next one."""
    def whole(c, want, name, rank):
        try:
            return fault(c, want, name, rank)
        finally:
            c.heal()
            c.wait_ready(c.nodes)
    return whole


def pause(run, since):
    """The longest time from one step to the next after `since`, and the steps done again."""
    rows = run.c.rows(run.job)
    at = [r["t"] for r in rows]
    return max(b - a for a, b in zip(at, at[1:]) if b > since), len(rows) - len({r["step"] for r in rows})


def told_of(node):
    return rf"node {node}|on {node}\b"


@healed
def port_down(c, want, name, rank):
    """The cable is pulled and stays out until the ranks are long elsewhere; then the node comes back and must do nothing for its old epoch."""
    run = Run(c, name, *LONG)
    run.at(12)
    node = run.node_of(rank)
    run.blow(lambda: c.link(node, False))
    return ordinary(run, rank, told_of(node), want)


@healed
def flap(c, want, name, rank):
    """Out for a second, less than the collective timeout: ridden out, nobody is blamed."""
    run = Run(c, name, *LONG)
    run.at(12)
    node = run.node_of(rank)
    run.blow(lambda: c.link(node, False))
    time.sleep(1)
    c.link(node, True)
    run.finish(want)
    if c.job(run.job)["restarts"]:
        raise Failure(f"{name}: found {c.job(run.job)['restarts']} recoveries, expected a flap of 1 s to be ridden out")
    longest, again = pause(run, run.t0)
    return dict(detect=None, recover=longest, lost=again, named=None, bitwise=True, told="ridden out; the longest pause is given")


@healed
def loss(c, want, name, rank):
    """Every node loses one packet in a hundred of what it is sent."""
    run = Run(c, name)
    run.at(12)
    run.blow(lambda: [c.drop(n, "input", "numgen random mod 100 == 0") for n in c.names[1:]])
    run.finish(want)
    if c.job(run.job)["restarts"]:
        raise Failure(f"{name}: found {c.job(run.job)['restarts']} recoveries, expected 1% loss to be ridden out")
    longest, again = pause(run, run.t0)
    return dict(detect=None, recover=longest, lost=again, named=None, bitwise=True, told="ridden out; the longest pause is given")


def one_way(hook):
    @healed
    def fault(c, want, name, rank):
        run = Run(c, name, *LONG)
        run.at(12)
        node = run.node_of(rank)
        run.blow(lambda: c.drop(node, hook))
        return ordinary(run, rank, told_of(node), want)
    return fault


@healed
def cut_off(c, want, name, rank):
    """Only the way to the controller is cut: the ranks reach each other and would train on. They may until their lease is over, and not a step longer."""
    run = Run(c, name, "--set", "test.slow_ms=100")
    run.at(12)
    node = run.node_of(rank)
    pids = [p for r, p in c.pids(run.job).items() if run.node_of(r) == node]
    run.blow(lambda: c.cut(node, "fp8d"))
    row = ordinary(run, rank, told_of(node), want)
    rows = c.rows(run.job)
    first = min(r["epoch"] for r in rows)
    late = [r for r in rows if r["epoch"] == first and r["t"] > run.t0 + LEASE_S]
    if late:
        raise Failure(f"{name}: step {late[0]['step']} was done {late[0]['t'] - run.t0:.2f} s after the cut, the lease is {LEASE_S} s")
    alive = [p for p in pids if subprocess.run(["kill", "-0", str(p)], stderr=subprocess.DEVNULL, check=False).returncode == 0]
    if alive:
        raise Failure(f"{name}: ranks {alive} of {node} live beyond their lease")
    on = max(r["t"] for r in rows if r["epoch"] == first) - run.t0
    row["told"] += f"; trained on for {on:.2f} s of {LEASE_S} s"
    return row


def together(deed, undo):
    """The rank's rack, two of six nodes, at once: there are spares, and second copies lie in other racks."""
    @healed
    def fault(c, want, name, rank):
        run = Run(c, name, *LONG)
        run.at(12)
        nodes = [n for n in c.names[1:] if c.rack_of(n) == c.rack_of(run.node_of(rank))]
        blows = [threading.Thread(target=deed, args=(c, n)) for n in nodes]
        run.blow(lambda: [b.start() for b in blows] and [b.join() for b in blows])
        try:
            return ordinary(run, rank, "|".join(told_of(n) for n in nodes), want)
        finally:
            for n in nodes:
                undo(c, n)
    return fault


FAULTS = [
    ("17", "port", "port down, longer than the lease", port_down, "all"),
    ("18", "flap", "port down for 1 s", flap, "all"),
    ("19", "loss", "1% of all packets lost", loss, "first"),
    ("20", "oneway-out", "one-way partition: a node is heard by nobody", one_way("output"), "all"),
    ("20", "oneway-in", "one-way partition: a node hears nobody", one_way("input"), "all"),
    ("20", "cut-off", "a node cut off from the controller alone", cut_off, "all"),
    ("21", "switch", "a rack unreachable: two of six nodes", together(lambda c, n: c.link(n, False), lambda c, n: None), "all"),
    ("27", "quarter", "a rack off: two of six nodes", together(lambda c, n: c.kill_node(n), lambda c, n: c.start_worker(n)), "all"),
]
