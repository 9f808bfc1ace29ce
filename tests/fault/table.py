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
from blow import TIMEOUT_MS, NotHere, Run, ordinary  # noqa: E402
from cluster import ROOT, Failure, median, wait_for  # noqa: E402
import host  # noqa: E402
import network  # noqa: E402
import state  # noqa: E402

PLACES = {"first": 0, "middle": 3, "last": 7}
BEGIN, END = "<!-- table.py: begin -->", "<!-- table.py: end -->"


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


def stopped(c, want, name, rank):
    """SIGSTOP: nothing ends, nobody hangs up; the others wait in vain."""
    return by_signal(signal.SIGSTOP, "is stuck")(c, want, name, rank)


def overflow(c, want, name, rank):
    layer = 0 if rank < 4 else 3  # of its own stage: another's tensor it does not have
    run = Run(c, name, "--set", "test.overflow_step=20", "--set", f"test.overflow_rank={rank}", "--set", f"test.overflow_tensor=model.layers.{layer}.mlp.up_proj.weight")
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


PROCESSES = [
    ("1", "sigkill", "SIGKILL", by_signal(signal.SIGKILL, "SIGKILL"), "all"),
    ("2", "sigsegv", "SIGSEGV", by_signal(signal.SIGSEGV, "SIGSEGV"), "all"),
    ("3", "sigabrt", "SIGABRT", by_signal(signal.SIGABRT, "SIGABRT"), "all"),
    ("4", "sigstop", f"SIGSTOP, collective timeout {TIMEOUT_MS / 1e3:g} s", stopped, "all"),
    ("5", "sigterm", "SIGTERM", by_signal(signal.SIGTERM, "SIGTERM|left|exit"), "all"),
    ("6", "exit", "exit with a status (needs gdb)", by_exit, "all"),
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


def processes(build):
    return Bare(build, nodes=5, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"])


# Each group on a cluster of its kind.
GROUPS = [(processes, PROCESSES), (network.cluster, network.FAULTS), (host.cluster, host.FAULTS + state.FAULTS)]
FAULTS = sorted(sum((g[1] for g in GROUPS), []), key=lambda f: int(f[0]))

# What a blow from outside to this job cannot show, and what does instead.
ELSEWHERE = [
    ("8", "device out of memory", "needs a GPU"),
    ("9", "a kernel's illegal address", "needs a GPU"),
    ("10", "a kernel that never ends", "needs a GPU; `tests/comm/test_comm_device.c`: work on a device that makes no progress is left within the timeout"),
    ("13", "Xids", "`tests/vm/run xids` says every Xid of the table to a guest's kernel log; `tests/e2e/health.py BUILD times`: from there to the controller's event"),
    ("29", "the leader in a minority partition", "there is one controller; what holds while it is away or cut off are rows 20 and 28"),
    ("31", "messages doubled and reordered", "`tests/sim`: in every run with faults, counted in its last lines; between ranks TCP does not do that"),
    ("32", "messages of an old epoch replayed", "`tests/unit/test_recovery.c`, `tests/sim`, `tests/comm`, `tests/unit/test_replica_link.c` (below)"),
    ("37", "the source dies while it heals another", "`tests/fault/source_loss.py`: with nobody else to have its slices the newest commit is loaded, bit for bit"),
]


def seconds(v):
    return "-" if v is None else f"{v:.3f}"


def text_of(rows):
    out = ["| fault | what | rank | detect s | recover s | steps lost | cause named | bitwise |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        yes = {True: "yes", False: "**no**", None: "-"}
        if "elsewhere" in r:
            out.append(f"| {r['number']} | {r['what']} | | | | | | {r['elsewhere']} |")
        elif "absent" in r:
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


def group(args, make, faults):
    places = args.ranks.split(",")
    rows = [{"number": f[0], "what": f[2], "place": p, "fault": f} for f in faults for p in places if f[4] == "all" or p == "first"]
    try:
        c = make(args.build)
    except NotHere as e:
        for row in rows:
            row["absent"] = str(e)
        return rows
    with c:
        calm = Run(c, "calm")
        c.wait_done(calm.job)
        want = c.final(calm.job)
        for row in rows:
            name = f"{row['fault'][1]} {row['place']}"
            try:
                row.update(row["fault"][3](c, want, name.replace(" ", "-"), PLACES[row["place"]]))
            except NotHere as e:
                row["absent"] = str(e)
            except (Failure, OSError) as e:
                row["failed"] = str(e).splitlines()[0][:160]
            for left in c.json("list")["jobs"]:
                c.ctl("cancel", str(left["id"]), "--now", check=False)
            if "absent" in row:
                print(f"not here {name}: {row['absent']}", flush=True)
            elif "failed" in row:
                print(f"FAILED {name}: {row['failed']}", flush=True)
            else:
                print(f"{'ok ' if row['named'] is not False else 'NOT NAMED'} {name}: detected {seconds(row['detect'])} s, new step {seconds(row['recover'])} s, "
                      f"lost {row['lost']}: {row['told']}", flush=True)
    return rows


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
        for number, what, by in ELSEWHERE:
            print(f"{'':12} fault {number:3} {what}: {by}")
        return 0
    only = [x for x in args.only.split(",") if x]
    unknown = set(only) - {f[1] for f in FAULTS}
    if unknown:
        a.error(f"no fault {sorted(unknown)}; see --list")
    rows = []
    for make, faults in GROUPS:
        wanted = [f for f in faults if not only or f[1] in only]
        if wanted:
            rows += group(args, make, wanted)
    rows.sort(key=lambda r: int(r["number"]))
    rows_run = [r for r in rows if "absent" not in r]
    bad = [r for r in rows_run if "failed" in r or r["named"] is False]
    if args.write:
        commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"
        good = [r["recover"] for r in rows if r.get("recover") is not None]
        shown = rows + [{"number": n, "what": what, "elsewhere": by} for n, what, by in ELSEWHERE]
        shown.sort(key=lambda r: int(r["number"]))
        write(args.write, shown, f"Made by `tests/fault/table.py` at commit {commit} on {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}: {len(rows_run)} blows, "
              f"{len(rows_run) - len(bad)} as they should be, median {median(good):.2f} s to a new step.")
    print(f"{len(rows_run)} blows, {len(bad)} not as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as e:
        sys.exit(f"table: {e}")
