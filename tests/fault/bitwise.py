#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A job that loses processes ends with the bits of one that does not.

`bitwise.py BUILD [CASE...]`: runs an undisturbed job, then each case, and compares the 32-bit loss and the state digest of every step.
Cases: ranks (SIGKILL at steps 7, 23, 40 of the first, a middle and the last rank), points (a rank dies at a named point inside a step),
pair (two jobs side by side, a rank of each killed), controller, worker (SIGKILL, restarted by the keeper).
"""
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from cluster import ROOT, SMALL, Cluster, Failure, compare, paced, wait_for  # noqa: E402

STEPS = 0
SIZES = []
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", *SIZES, *more)


def finish(c, name, job, want, recoveries=None):
    c.wait_done(job)
    compare(name, want, c.final(job))
    rows = c.rows(job)
    seen = {}
    for r in rows:
        key = (r["step"], r["epoch"])
        if key in seen:
            raise Failure(f"{name}: step {r['step']} of epoch {r['epoch']} is there twice")
        seen[key] = r
        if r["step"] in want and r["loss_hex"] != want[r["step"]]["loss_hex"]:
            raise Failure(f"{name}: step {r['step']} in epoch {r['epoch']}: loss {r['loss_hex']}, expected {want[r['step']]['loss_hex']}")
    printed = [r["step"] for r in c.json("metrics", str(job))["rows"]]
    if printed != sorted(want):
        raise Failure(f"{name}: fp8ctl metrics prints steps {printed[:5]}.., expected each of 1..{STEPS} once")
    j = c.job(job)
    if recoveries is not None and j["restarts"] < recoveries:
        raise Failure(f"{name}: found {j['restarts']} recoveries, expected at least {recoveries}: was anything killed?")
    print(f"ok  {name}: {len(want)} steps equal bit for bit; {j['restarts']} recoveries, {j['lost_steps']} steps done again", flush=True)


def check_why(c, job):
    found = [(i["state"], i["rank"], "was killed by SIGKILL" in i["cause"], bool(i["seen"] and i["decided"] and i["done"]), i["cost_ms"]["total"] > 0) for i in c.json("why", str(job))["incidents"]]
    if found != [("recovered", r, True, True, True) for r in (0, 3, 7)]:
        raise Failure(f"why: found {found}, expected three recovered incidents of ranks 0, 3 and 7, each whole and killed by SIGKILL")


def case_ranks(c, want):
    job = submit(c, "ranks", *paced(60))
    for step, rank in ((7, 0), (23, 3), (40, 7)):
        c.wait_step(job, step)
        before = c.job(job)["restarts"]
        c.kill_rank(job, rank)
        wait_for("the recovery to be counted", lambda: c.job(job)["restarts"] > before, 30)
    finish(c, "ranks", job, want, 3)
    told = [e["text"] for e in c.events(job)["events"] if e["kind"] == "recovered"]
    if len(told) != 3 or not all("was killed by SIGKILL;" in t for t in told):
        raise Failure(f"the cause: found {told}, expected 'was killed by SIGKILL' and no other reason three times")
    check_why(c, job)
    c.check_goodput(job)


def case_points(c, want):
    """Between agreement and snapshot survivors stand at N and N+1."""
    for point, rank in (("forward", 2), ("agreed", 5), ("updated", 0), ("gathered", 6), ("snapshot", 3), ("prepared", 4)):
        step = 20 if point == "prepared" else 11
        job = submit(c, "point-" + point, "--set", f"test.kill_step={step}", "--set", f"test.kill_rank={rank}", "--set", f"test.kill_point={point}", *paced(20))
        finish(c, "point-" + point, job, want, 1)


def case_pair(c, want):
    """Four ranks each, side by side on the same workers, in a layout of their own."""
    alone = submit(c, "alone", "--set", "parallel.dp=1")
    c.wait_done(alone)
    alone_rows = c.final(alone)
    jobs = [submit(c, f"pair-{i}", "--set", "parallel.dp=1", *paced(40)) for i in (0, 1)]
    for i, job in enumerate(jobs):
        c.wait_step(job, 15)
        c.kill_rank(job, 3 * i)
    for i, job in enumerate(jobs):
        finish(c, f"pair-{i}", job, alone_rows, 1)


def case_controller(c, want):
    job = submit(c, "controller", *paced(100))
    c.wait_step(job, 10)
    pid = c.daemon_pid("fp8d")
    os.kill(pid, signal.SIGKILL)
    wait_for("the controller to come back", lambda: c.ctl("get", str(job), check=False).returncode == 0, 20)
    if c.daemon_pid("fp8d") == pid:
        raise Failure("controller: the same pid answers")
    c.wait_step(job, 20)
    pids = c.pids(job)
    # And once more in the middle of a recovery.
    os.kill(pids[1], signal.SIGKILL)
    time.sleep(0.02)
    os.kill(c.daemon_pid("fp8d"), signal.SIGKILL)
    finish(c, "controller", job, want, 1)


def case_worker(c, want):
    job = submit(c, "worker", *paced(100))
    c.wait_step(job, 10)
    before = c.pids(job)
    os.kill(c.daemon_pid("node-1"), signal.SIGKILL)
    c.wait_step(job, 30)
    if c.pids(job) != before:
        raise Failure(f"worker: ranks did not outlive their worker: {before} became {c.pids(job)}")
    finish(c, "worker", job, want)


CASES = {"ranks": case_ranks, "points": case_points, "pair": case_pair, "controller": case_controller, "worker": case_worker}


def main():
    global STEPS, SIZES
    build, names = sys.argv[1], sys.argv[2:] or list(CASES)
    SIZES = [] if "ranks" in names else SMALL  # one of them on a model whose products are of more than one block
    STEPS = 26 if names == ["points"] else 48  # the last point is reached at step 20
    with Cluster(build, nodes=4, devices=2, test_hooks=True) as c:
        calm = submit(c, "calm")
        j = c.wait_done(calm)
        want = c.final(calm)
        if sorted(want) != list(range(1, STEPS + 1)) or j["restarts"] != 0:
            raise Failure(f"the undisturbed job: {len(want)} steps, {j['restarts']} recoveries; expected {STEPS} and 0")
        for n in names:
            CASES[n](c, want)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"bitwise: {e}")
