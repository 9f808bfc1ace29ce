#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The faults of a job, on real processes of this machine: how long each takes to be detected and to be over, what it costs, and whether its cause is named.

  tests/fault/table.py [--build DIR] [--only NAME,...] [--ranks first,middle,last] [--write docs/recovery.md] [--list]

Each fault hits a running job of eight ranks (tp 2, pp 2, dp 2).  All times are taken from outside: `detect` is the first event after the blow, `recover` the
first row of a *new* step (one beyond every step done before), `lost` the steps done again.  Bitwise: the 32-bit loss and the state digest of every step are those
of an undisturbed run.  --write puts the table between the marks of that file.
"""
import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, Failure, compare, median, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
STEPS = 40
TIMEOUT_MS = 2000
PLACES = {"first": 0, "middle": 3, "last": 7}
BEGIN, END = "<!-- table.py: begin -->", "<!-- table.py: end -->"
TROUBLE = ("rank_lost", "rank_fault", "rank_exited", "node_lost", "recovery_started", "step_skipped", "rollback", "failed", "save_dropped", "storage")


class NotHere(Exception):
    """This machine has no means for the fault."""


class Run:
    """One job that a fault is done to."""
    def __init__(self, c, name, *more):
        self.c, self.name = c, name
        self.job = c.submit(JOB, "--name", name, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}",
                            "--set", f"recovery.collective_timeout_ms={TIMEOUT_MS}", "--set", "test.slow_ms=20", *more)
        self.t0 = None

    def at(self, step):
        self.c.wait_step(self.job, step)

    def blow(self, deed):
        self.t0 = time.time()
        deed()

    def signal_rank(self, rank, sig):
        pid = wait_for(f"a pid of rank {rank}", lambda: self.c.pids(self.job).get(rank), 30)
        self.blow(lambda: os.kill(pid, sig))

    def node_of(self, rank):
        d = self.c.describe(self.job)
        return next(r["node"] for r in (d.get("plan") or d["job"]["plan"])["ranks"] if r["rank"] == rank)

    def new_step(self, seconds=60):
        def look():
            rows = self.c.rows(self.job)
            old = max((r["step"] for r in rows if r["t"] <= self.t0), default=0)
            epoch = max((r["epoch"] for r in rows if r["t"] <= self.t0), default=0)
            done = max((r["step"] for r in rows if r["epoch"] <= epoch), default=old)
            fresh = [r for r in rows if r["epoch"] > epoch and r["step"] > done]
            again = {r["step"] for r in rows if r["epoch"] > epoch and r["step"] <= done}
            return (fresh[0]["t"] - self.t0, len(again)) if fresh else None
        return wait_for(f"{self.name}: a new step", look, seconds, 0.02)

    def first_word(self):
        """Seconds to the first event after the blow that speaks of trouble. Event times are rounded down to milliseconds."""
        t = [e["unix_ms"] / 1e3 - self.t0 for e in self.c.events(self.job)["events"] if e["kind"] in TROUBLE and e["unix_ms"] / 1e3 >= self.t0 - 0.001]
        return max(min(t), 0.001) if t else None

    def causes(self):
        since = (self.t0 - 0.001) * 1000
        return [e["text"] for e in self.c.events(self.job)["events"] if e["kind"] in ("recovered", "failed", "rollback", "step_skipped") and e["unix_ms"] >= since]

    def finish(self, want):
        self.c.wait_done(self.job)
        compare(self.name, want, self.c.final(self.job))


def ordinary(run, rank, cause, want, wait=60):
    """The common end: a new step, the cause, the same bits."""
    recover, again = run.new_step(wait)
    told = wait_for(f"{run.name}: its recovery to be told", run.causes, 20)[-1]
    detect = run.first_word()
    run.finish(want)
    return dict(detect=detect, recover=recover, lost=again, named=bool(re.search(cause, told)), bitwise=True, told=told)


def by_signal(sig, cause):
    def fault(c, want, name, rank):
        run = Run(c, name)
        run.at(12)
        run.signal_rank(rank, sig)
        return ordinary(run, rank, f"^rank {rank} .*{cause}", want)
    return fault


def by_exit(c, want, name, rank):
    """_exit(3) called in the middle of whatever it does, by a debugger."""
    run = Run(c, name)
    run.at(12)
    pid = c.pids(run.job)[rank]
    run.blow(lambda: subprocess.run(["gdb", "-q", "-batch", "-p", str(pid), "-ex", "call (void)_exit(3)"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL, check=False, timeout=60))
    return ordinary(run, rank, rf"^rank {rank} .*exit 3", want)


def out_of_memory(c, want, name, rank):
    """The node's memory is limited to what the rank has; the kernel's out-of-memory killer takes it."""
    run = Run(c, name)
    run.at(12)
    pid = c.pids(run.job)[rank]
    with memory_group(f"fp8ctl-table-{os.getpid()}") as g:
        run.blow(lambda: g.squeeze(pid))
        return ordinary(run, rank, f"^rank {rank} .*(out of memory|out-of-memory|SIGKILL)", want)


class memory_group:
    """A memory control group of our own, v1 or v2."""
    def __init__(self, name):
        v1 = "/sys/fs/cgroup/memory"
        base = v1 if os.path.isdir(v1) else "/sys/fs/cgroup"
        self.v1 = base == v1
        self.dir = os.path.join(base, name)

    def __enter__(self):
        os.mkdir(self.dir)
        return self

    def write(self, name, value):
        with open(os.path.join(self.dir, name), "w") as h:
            h.write(str(value))

    def squeeze(self, pid):
        if self.v1:
            try:
                self.write("memory.move_charge_at_immigrate", 3)
            except OSError:
                raise NotHere("this kernel moves no memory between control groups") from None
        self.write("cgroup.procs", pid)
        limit = "memory.limit_in_bytes" if self.v1 else "memory.max"
        # v1 refuses a limit below what cannot be given back: down in halves, until the killer comes.
        size = 1 << 30
        while size >= 1 << 20 and os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                self.write(limit, size)
            size //= 2
            time.sleep(0.002)

    def __exit__(self, *a):
        for _ in range(100):
            try:
                os.rmdir(self.dir)
                return
            except OSError:
                time.sleep(0.05)


def stopped(c, want, name, rank):
    """SIGSTOP: nothing ends, nobody hangs up; the others wait in vain."""
    return by_signal(signal.SIGSTOP, "is stuck")(c, want, name, rank)


def overflow(c, want, name, rank):
    run = Run(c, name, "--set", "test.overflow_step=20", "--set", f"test.overflow_rank={rank}", "--set", "test.overflow_tensor=model.layers.1.mlp.up_proj.weight")
    run.at(19)
    run.t0 = c.rows(run.job)[-1]["t"]
    told = wait_for("the step to be skipped", run.causes, 30)[-1]
    detect = run.first_word()
    c.wait_done(run.job)
    rows = c.final(run.job)
    skipped = [s for s in rows if rows[s]["skipped"]]
    if skipped != [20] or rows[20]["digest"] != rows[19]["digest"]:
        raise Failure(f"{name}: skipped {skipped}, expected [20] with nothing changed")
    return dict(detect=detect, recover=rows[21]["t"] - run.t0, lost=0, named=f"rank {rank}" in told, bitwise=None, told=told)


def node_off(back):
    def fault(c, want, name, rank):
        run = Run(c, name)
        run.at(12)
        node = run.node_of(rank)
        run.blow(lambda: c.kill_node(node))
        if back:
            c.start_worker(node)
        try:
            return ordinary(run, rank, f"node {node}|on {node}", want)
        finally:
            if not back:
                c.start_worker(node)
                c.wait_ready(c.nodes)
    return fault


def processes_of(c, node):
    """Worker, spawner and ranks of a node."""
    dead = [c.daemon_pid(node), c.spawner_pid(node)]
    p = subprocess.run(["ps", "-o", "pid=", "--ppid", str(dead[1])], stdout=subprocess.PIPE, text=True, check=False)
    return dead + [int(x) for x in p.stdout.split()]


def node_frozen(c, want, name, rank):
    """Every process of a node is stopped. It wakes when the job is long elsewhere, and must not do a thing for it."""
    run = Run(c, name)
    run.at(12)
    pids = processes_of(c, run.node_of(rank))
    run.blow(lambda: [os.kill(p, signal.SIGSTOP) for p in pids])
    try:
        recover, again = run.new_step()
        told = wait_for(f"{name}: its recovery to be told", run.causes, 20)[-1]
        detect = run.first_word()
    finally:
        for p in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(p, signal.SIGCONT)
    run.finish(want)
    c.wait_ready(c.nodes)
    return dict(detect=detect, recover=recover, lost=again, named=bool(re.search(f"rank {rank} .*is stuck|on {run.node_of(rank)}|node", told)), bitwise=True, told=told)


def controller(c, want, name, rank):
    run = Run(c, name)
    run.at(12)
    before = max(r["t"] for r in c.rows(run.job))
    pid = c.daemon_pid("fp8d")
    c.started.pop("fp8d")
    run.blow(lambda: os.kill(pid, signal.SIGKILL))
    c.start_controller()
    run.finish(want)
    gap = max(b["t"] - a["t"] for a, b in zip(c.rows(run.job), c.rows(run.job)[1:]) if b["t"] > before)
    if c.job(run.job)["restarts"]:
        raise Failure(f"{name}: found {c.job(run.job)['restarts']} recoveries, expected training to go on")
    return dict(detect=None, recover=gap, lost=0, named=None, bitwise=True, told="training goes on meanwhile; its longest pause is given")


def worker(c, want, name, rank):
    run = Run(c, name)
    run.at(12)
    node = run.node_of(rank)
    before, at = c.pids(run.job), max(r["t"] for r in c.rows(run.job))
    pid = c.daemon_pid(node)
    p = c.started.pop(node)
    run.blow(lambda: os.kill(pid, signal.SIGKILL))
    p.wait()
    c.start_worker(node)
    run.finish(want)
    gap = max(b["t"] - a["t"] for a, b in zip(c.rows(run.job), c.rows(run.job)[1:]) if b["t"] > at)
    if c.job(run.job)["restarts"]:
        raise Failure(f"{name}: found {c.job(run.job)['restarts']} recoveries, expected ranks {before} to outlive their worker")
    return dict(detect=None, recover=gap, lost=0, named=None, bitwise=True, told="its ranks outlive it; the longest pause is given")


def second_failure(c, want, name, rank):
    """Another rank dies while the first is being replaced."""
    run = Run(c, name)
    run.at(12)
    pids = c.pids(run.job)
    other = (rank + 4) % 8
    run.blow(lambda: os.kill(pids[rank], signal.SIGKILL))
    time.sleep(0.03)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[other], signal.SIGKILL)
    return ordinary(run, rank, f"^rank ({rank}|{other}) .*SIGKILL", want)


def replacement_dies(c, want, name, rank):
    run = Run(c, name)
    run.at(12)
    first = c.pids(run.job)[rank]
    run.blow(lambda: os.kill(first, signal.SIGKILL))
    again = wait_for("the rank's next process", lambda: (lambda p: p if p and p != first else None)(c.pids(run.job).get(rank)), 20, 0.005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(again, signal.SIGKILL)
    return ordinary(run, rank, f"^rank {rank} .*SIGKILL", want)


def crash_loop(c, want, name, rank):
    """It dies at the same place every time: the job stops, with the reason."""
    run = Run(c, name, "--set", "recovery.same_cause_limit=3")
    run.at(12)
    pid = c.pids(run.job)[rank]
    run.blow(lambda: os.kill(pid, signal.SIGSEGV))
    seen = {pid}

    def over():
        j = c.job(run.job)
        now = c.pids(run.job).get(rank)
        if now and now not in seen and j["state"] != "FAILED":
            seen.add(now)
            with contextlib.suppress(ProcessLookupError):
                os.kill(now, signal.SIGSEGV)
        return j if j["state"] in ("FAILED", "COMPLETED") else None
    j = wait_for("the job to stop", over, 60, 0.005)
    return dict(detect=run.first_word(), recover=None, lost=None, named=j["state"] == "FAILED" and "SIGSEGV" in (j["failure"] or ""), bitwise=None,
                told=j["failure"] or f"the job is {j['state']}")


def point(at):
    """Killed by itself at a point inside a step."""
    def fault(c, want, name, rank):
        step = 20 if at == "prepared" else 14
        run = Run(c, name, "--set", f"test.kill_step={step}", "--set", f"test.kill_rank={rank}", "--set", f"test.kill_point={at}")
        run.at(step - 1)
        run.t0 = [r for r in c.rows(run.job) if r["step"] >= step - 1][0]["t"]
        return ordinary(run, rank, f"^rank {rank} ", want)
    return fault


FAULTS = [
    ("1", "sigkill", "SIGKILL", by_signal(signal.SIGKILL, "SIGKILL"), "all"),
    ("2", "sigsegv", "SIGSEGV", by_signal(signal.SIGSEGV, "SIGSEGV"), "all"),
    ("3", "sigabrt", "SIGABRT", by_signal(signal.SIGABRT, "SIGABRT"), "all"),
    ("4", "sigstop", f"SIGSTOP, collective timeout {TIMEOUT_MS / 1e3:g} s", stopped, "all"),
    ("5", "sigterm", "SIGTERM", by_signal(signal.SIGTERM, "SIGTERM|left|exit"), "all"),
    ("6", "exit", "exit with a status (needs gdb)", by_exit, "all"),
    ("7", "oom", "host out of memory (memory control group; root)", out_of_memory, "all"),
    ("11", "overflow", "overflow in one step", overflow, "all"),
    ("15", "collective", "death in the middle of a collective", point("agreed"), "all"),
    ("22", "power", "node off for good, a spare node", node_off(False), "all"),
    ("23", "frozen", "whole node frozen, and back later", node_frozen, "all"),
    ("24", "reboot", "node off and back at once", node_off(True), "all"),
    ("28", "controller", "controller SIGKILL, started again", controller, "first"),
    ("28", "worker", "worker SIGKILL, started again", worker, "all"),
    ("33", "save", "death in the middle of a save", point("prepared"), "all"),
    ("38", "second", "a second rank dies during recovery", second_failure, "all"),
    ("39", "replacement", "the replacement dies while it joins", replacement_dies, "all"),
    ("40", "loop", "deterministic crash loop (must stop)", crash_loop, "first"),
]


def seconds(v):
    return "-" if v is None else f"{v:.3f}"


def text_of(rows):
    out = ["| fault | what | rank | detect s | recover s | steps lost | cause named | bitwise |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        yes = {True: "yes", False: "**no**", None: "-"}
        if "absent" in r:
            out.append(f"| {r['number']} | {r['what']} | {r['place']} | | | | | not here: {r['absent']} |")
        elif "failed" in r:
            out.append(f"| {r['number']} | {r['what']} | {r['place']} | | | | | **not passed**: {r['failed']} |")
        else:
            out.append(f"| {r['number']} | {r['what']} | {r['place']} | {seconds(r['detect'])} | {seconds(r['recover'])} | {'-' if r['lost'] is None else r['lost']} | "
                       f"{yes[r['named']]} | {yes[r['bitwise']]} |")
    return "\n".join(out)


def write(path, rows, how):
    with open(path) as h:
        page = h.read()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    with open(path + ".new", "w") as h:
        h.write(f"{before}{BEGIN}\n{how}\n\n{text_of(rows)}\n{END}{after}")
    os.replace(path + ".new", path)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--build", default=os.path.join(ROOT, "build"))
    a.add_argument("--only", default="", help="names, see --list")
    a.add_argument("--ranks", default="first,middle,last")
    a.add_argument("--write", metavar="FILE")
    a.add_argument("--list", action="store_true")
    args = a.parse_args()
    if args.list:
        for f in FAULTS:
            print(f"{f[1]:12} fault {f[0]:3} {f[2]}")
        return 0
    only = [x for x in args.only.split(",") if x]
    unknown = set(only) - {f[1] for f in FAULTS}
    if unknown:
        a.error(f"no fault {sorted(unknown)}; see --list")
    rows = []
    with Bare(args.build, nodes=5, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"]) as c:
        calm = Run(c, "calm")
        c.wait_done(calm.job)
        want = c.final(calm.job)
        for number, name, what, fault, where in FAULTS:
            if only and name not in only:
                continue
            for place in args.ranks.split(","):
                if where == "first" and place != "first":
                    continue
                row = {"number": number, "what": what, "place": place}
                try:
                    row.update(fault(c, want, f"{name}-{place}", PLACES[place]))
                except NotHere as e:
                    row["absent"] = str(e)
                except (Failure, OSError) as e:
                    row["failed"] = str(e).splitlines()[0][:160]
                for left in c.json("list")["jobs"]:
                    c.ctl("cancel", str(left["id"]), "--now", check=False)
                rows.append(row)
                if "absent" in row:
                    print(f"not here {name} {place}: {row['absent']}", flush=True)
                elif "failed" in row:
                    print(f"FAILED {name} {place}: {row['failed']}", flush=True)
                else:
                    print(f"{'ok ' if row['named'] is not False else 'NOT NAMED'} {name} {place}: detected {seconds(row['detect'])} s, new step {seconds(row['recover'])} s, "
                          f"lost {row['lost']}: {row['told']}", flush=True)
    rows_run = [r for r in rows if "absent" not in r]
    bad = [r for r in rows_run if "failed" in r or r["named"] is False]
    if args.write:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"
        good = [r["recover"] for r in rows if r.get("recover") is not None]
        write(args.write, rows, f"Made by `tests/fault/table.py` at commit {commit} on {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}: {len(rows_run)} blows, "
              f"{len(rows_run) - len(bad)} as they should be, median {median(good):.2f} s to a new step.")
    print(f"{len(rows_run)} blows, {len(bad)} not as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as e:
        sys.exit(f"table: {e}")
