# SPDX-License-Identifier: Apache-2.0
"""Faults of a host, for table.py: wall clocks that jump, a slow disk under the controller. What the daemons see is host_shim.c's."""
import contextlib
import os
import subprocess
import time

from bare import Bare, gone
from blow import NotHere, Run, ordinary
from cluster import Failure, wait_for

LEASE_S = 3.2


def memory_hierarchy():
    """Where memory control groups can be made, and the names of their limit and usage: version 1 or 2. None without root or them."""
    for path, limit, usage in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"), ("/sys/fs/cgroup", "memory.max", "memory.current")):
        if os.access(path, os.W_OK) and os.path.exists(path + "/cgroup.procs"):
            return path, limit, usage
    return None, None, None


MEMORY, LIMIT, USAGE = memory_hierarchy()


class Shimmed(Bare):
    def __init__(self, build, shim):
        super().__init__(build, nodes=5, devices=2, controller=["--allow-test-hooks", "--lease-ttl", f"{int(LEASE_S * 1000)}ms", "--heartbeat", "300ms"])
        names = ["fp8d"] + [f"node-{i}" for i in range(self.nodes)]
        self.env = {n: {"LD_PRELOAD": shim, "FP8_TEST_HOST": self.trouble_of(n)} for n in names}

    def spawn(self, name, argv, log):
        """Workers within a memory control group each, so that a node's memory can be taken away."""
        if name != "fp8d" and MEMORY:
            os.makedirs(self.group_of(name), exist_ok=True)
            argv = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', self.group_of(name) + "/cgroup.procs", *argv]
        return super().spawn(name, argv, log)

    def __exit__(self, kind, value, trace):
        super().__exit__(kind, value, trace)
        for i in range(self.nodes if MEMORY else 0):
            for _ in range(50):
                try:
                    os.rmdir(self.group_of(f"node-{i}"))
                    break
                except OSError:
                    time.sleep(0.05)

    def group_of(self, name):
        return f"{MEMORY}/fp8ctl-table-{os.getpid()}-{name}"

    def limit(self, name, size):
        with contextlib.suppress(OSError), open(f"{self.group_of(name)}/{LIMIT}", "w") as h:
            h.write("-1" if size is None and LIMIT != "memory.max" else "max" if size is None else str(size))

    def usage(self, name):
        with open(f"{self.group_of(name)}/{USAGE}") as h:
            return int(h.read())

    def trouble_of(self, name):
        return f"{self.home}/host-{name}"

    def trouble(self, name, what):
        with open(self.trouble_of(name) + ".new", "w") as h:
            h.write(what)
        os.replace(self.trouble_of(name) + ".new", self.trouble_of(name))


def cluster(build):
    shim = os.path.join(os.path.abspath(build), "tests/fault/libhost_shim.so")
    if not os.path.exists(shim):
        raise NotHere("host_shim is not built")
    return Shimmed(build, shim)


def undisturbed(c, run, want, lasting):
    """It goes on as if nothing were: no recovery, no step that took longer than a lease."""
    rows = len(c.rows(run.job))
    began = time.monotonic()
    wait_for(f"{run.name}: a step after it", lambda: len(c.rows(run.job)) > rows, 30, 0.01)
    took = time.monotonic() - began
    time.sleep(lasting)
    run.finish(want)
    if c.job(run.job)["restarts"] or took > LEASE_S:
        raise Failure(f"{run.name}: found {c.job(run.job)['restarts']} recoveries and {took:.2f} s to the next step, expected it to go on")
    return dict(detect=None, recover=took, lost=0, named=None, bitwise=True, told="training goes on; the time to the next step is given")


def clock(jump, of_node):
    def fault(c, want, name, rank):
        run = Run(c, name, "--set", "test.slow_ms=150")
        run.at(6)
        who = run.node_of(rank) if of_node else "fp8d"
        run.blow(lambda: c.trouble(who, f"clock {jump}"))
        try:
            row = undisturbed(c, run, want, LEASE_S)
            off = c.events(run.job)["events"][-1]["unix_ms"] / 1e3 - time.time()
            if not of_node and abs(off - jump) > 60:
                raise Failure(f"{name}: the controller's last event is {off:.0f} s off, expected {jump}")
            return row
        finally:
            c.trouble(who, "")
    return fault


def slow_disk(c, want, name, rank):
    """Every fsync of the controller takes half a second longer: training does not wait for it, and a killed rank is replaced none the less."""
    run = Run(c, name, "--set", "test.slow_ms=150")
    run.at(6)
    c.trouble("fp8d", "sync 500")
    try:
        undisturbed(c, run, want, 0)
        run = Run(c, name + "-kill")
        run.at(12)
        run.signal_rank(rank, 9)
        return ordinary(run, rank, f"^rank {rank} .*SIGKILL", want)
    finally:
        c.trouble("fp8d", "")


def out_of_memory(c, want, name, rank):
    """The node has 4 MiB left, and something on it asks for more: the kernel's out-of-memory killer takes the rank, which it is told to prefer."""
    if not MEMORY:
        raise NotHere("no memory control groups, or no root")
    run = Run(c, name)
    run.at(12)
    pids = c.pids(run.job)
    node, pid = run.node_of(rank), pids[rank]
    with open(f"/proc/{pid}/oom_score_adj", "w") as h:
        h.write("1000")
    hungry = "echo -1000 >/proc/self/oom_score_adj; echo $$ >$0/cgroup.procs; head -c 12M /dev/zero | tail -c 12M >/dev/null"
    try:
        c.limit(node, c.usage(node) + (4 << 20))
        run.blow(lambda: subprocess.run(["/bin/sh", "-c", hungry, c.group_of(node)], stderr=subprocess.DEVNULL, check=False, timeout=20))
    finally:
        c.limit(node, None)
    killed = [r for r, p in pids.items() if gone(p)]  # the kernel may have taken the other rank of the node all the same
    return ordinary(run, rank, f"^rank ({'|'.join(map(str, killed))}) .*out of memory", want)


FAULTS = [
    ("7", "oom", "host out of memory", out_of_memory, "all"),
    ("26", "clock-on", "the controller's clock jumps on by an hour", clock(3600, False), "first"),
    ("26", "clock-back", "the controller's clock jumps back by an hour", clock(-3600, False), "first"),
    ("26", "clock-node", "a node's clock jumps on by an hour, its ranks' too", clock(3600, True), "all"),
    ("30", "slow-disk", "every fsync of the controller takes 0.5 s longer; then SIGKILL of a rank", slow_disk, "all"),
]
