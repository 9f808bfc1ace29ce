#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`leaving.py BUILD [CASE...]`: SIGTERM to one of two workers (a spot instance's notice), cancel with and without a last save, save, --from, retention, a node lost and back.

Wherever a job goes on, it does so with the bits of one that nothing happened to.
"""
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, compare, paced, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")
STEPS = 60


def check(what, found, expected):
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, "--set", f"checkpoint.dir={c.home}/ckpt-{name}", *more)


def state(c, job):
    return c.job(job)["state"]


def kinds(c, job):
    return [e["kind"] for e in c.events(job)["events"]]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as h:
            return h.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def verify(c, job):
    """Every committed checkpoint has a manifest and the shards that it names; what is listed is newest last."""
    listed = c.json("ckpt", "ls", str(job))["checkpoints"]
    for k in listed:
        with open(k["path"] + "/manifest.json") as h:
            m = json.load(h)
        check(f"{k['path']}: its step", m["step"], k["step"])
        for s in m["shards"]:
            check(f"{k['path']}/{s['file']}: its size", os.path.getsize(f"{k['path']}/{s['file']}"), s["bytes"])
    return listed


def case_notice(c, want):
    """Last save, PENDING with the reason, the worker gone with exit 0; back: from that very step to the end."""
    job = submit(c, "notice", *paced(40))
    c.wait_step(job, 12)
    pids = list(c.pids(job).values())
    check("exit code of a worker after SIGTERM", c.stop("node-1"), 0)
    j = c.job(job)
    check("state after the notice", j["state"], "PENDING")
    if "node-1 is leaving (SIGTERM)" not in j["reason"] and "needs 4 devices" not in j["reason"]:
        raise Failure(f"the reason after the notice: found {j['reason']!r}")
    wait_for("all of its ranks to be gone", lambda: not any(alive(p) for p in pids), 10)
    saved = j["checkpoint_step"]
    if saved < 12 or saved % 10 == 0 and saved != c.step(job):
        raise Failure(f"last save: found step {saved}, expected the newest step ({c.step(job)})")
    check("the last save is of the newest step", saved, c.step(job))
    said = [e["text"] for e in c.events(job)["events"] if e["kind"] == "requeued"]
    if len(said) != 1 or "node-1 is leaving" not in said[0] or f"saved at step {saved}" not in said[0]:
        raise Failure(f"event requeued: found {said}, expected one that names node-1 and step {saved}")
    wait_for("the reason to say what is missing", lambda: "needs 4 devices, 2 free" in c.job(job)["reason"], 10)
    c.start_worker("node-1")
    c.wait_done(job)
    compare("notice", want, c.final(job))
    twice = [r["step"] for r in c.rows(job)]
    check("steps done twice", sorted(s for s in set(twice) if twice.count(s) > 1), [])
    verify(c, job)


def case_away(c, want):
    """The notice comes while the controller is away: it is told when it is back, and the ranks save and leave long before the grace of 30 s is over."""
    job = submit(c, "away", *paced(20), "--set", "train.steps=1000000", "--set", "checkpoint.every_steps=0")
    c.wait_step(job, 3)
    c.stop("fp8d", signal.SIGKILL)
    worker = c.started.pop("node-1")
    worker.send_signal(signal.SIGTERM)
    c.start_controller()
    check("exit code of a worker after SIGTERM without a controller", worker.wait(25), 0)
    wait_for("PENDING", lambda: state(c, job) == "PENDING", 5)
    j = c.job(job)
    if not j["checkpoint_step"]:
        raise Failure(f"the last save after a notice without a controller: found none, expected one ({j['reason']})")
    c.ctl("cancel", str(job), "--now")
    c.start_worker("node-1")
    c.wait_ready(2)


def case_cancel(c, want):
    job = submit(c, "graceful", *paced(40))
    c.wait_step(job, 7)
    c.ctl("cancel", str(job), "--reason", "enough of it")
    j = c.wait_done(job, state="CANCELLED")
    if "enough of it" not in j["reason"]:
        raise Failure(f"reason of a cancelled job: found {j['reason']!r}, expected the one given")
    check("the last save of a cancelled job", j["checkpoint_step"], c.step(job))
    check("exit code of wait for a cancelled job", c.ctl("wait", str(job), check=False).returncode, 7)
    verify(c, job)
    c.wait_ready(2)
    job = submit(c, "now", *paced(40))
    c.wait_step(job, 3)
    pids = list(c.pids(job).values())
    began = time.monotonic()
    c.ctl("cancel", str(job), "--now")
    j = c.wait_done(job, state="CANCELLED")
    check("checkpoints after cancel --now", j["checkpoint"], None)
    wait_for("ranks to be gone", lambda: not any(alive(p) for p in pids), 10)
    if time.monotonic() - began > 8:
        raise Failure(f"cancel --now took {time.monotonic() - began:.1f} s")
    check("a job cancelled twice", c.json("cancel", str(job))["ended_unix_ms"], j["ended_unix_ms"])


def case_save(c, want):
    """save returns when it is committed; retention keeps the newest; --from goes on with the donor's bits, and under another layout."""
    job = submit(c, "donor", *paced(40), "--set", "checkpoint.every_steps=0", "--set", "checkpoint.keep_last=2")
    steps = []
    for at in (5, 15, 25):
        c.wait_step(job, at)
        s = c.json("save", str(job))
        check("save: its job", s["job"]["id"] if isinstance(s["job"], dict) else s["job"], job)
        steps.append(s["step"])
        if not os.path.exists((s["checkpoint"] if isinstance(s["checkpoint"], str) else s["checkpoint"]["path"]) + "/manifest.json"):
            raise Failure(f"save said {s} and there is no manifest")
    c.wait_done(job)
    compare("donor", want, c.final(job))
    wait_for("retention", lambda: [k["step"] for k in verify(c, job)] == [steps[-1], STEPS], 10)
    folders = lambda: sorted(f for _, ds, _ in os.walk(f"{c.home}/ckpt-donor") for f in ds if f.startswith("step_"))
    wait_for(f"two folders (found {folders()})", lambda: len(folders()) == 2, 10)
    donor = verify(c, job)[0]
    heir = submit(c, "heir", "--from", donor["path"])
    c.wait_done(heir)
    rows = c.final(heir)
    check("first step after --from", min(rows), donor["step"] + 1)
    compare("heir", {s: r for s, r in want.items() if s > donor["step"]}, rows)
    other = submit(c, "other", "--from", donor["path"], "--set", "parallel.tp=1", "--set", "parallel.pp=2")
    j = c.wait_done(other)
    rows = c.final(other)
    check("first step after --from in another layout", min(rows), donor["step"] + 1)
    if not abs(j["loss_last"] - want[STEPS]["loss"]) < 0.05 * want[STEPS]["loss"]:
        raise Failure(f"--from in another layout: last loss {j['loss_last']}, expected about {want[STEPS]['loss']}")
    p = c.ctl("submit", JOB, "--from", c.home + "/nothing", check=False)
    if p.returncode == 0 or "nothing" not in p.stderr:
        raise Failure(f"--from a folder that is not there: found exit {p.returncode} ({p.stderr!r}), expected a refusal that names it")


def case_node(c, want):
    """Worker, spawner and ranks of a node at once, twice: with no other place to go it waits for the node and goes on from the last commit."""
    job = submit(c, "node", *paced(40))
    c.wait_step(job, 14)
    pids = list(c.pids(job).values())
    c.kill_node("node-1")
    began = time.monotonic()
    wait_for("PENDING with a reason", lambda: (lambda j: j["state"] == "PENDING" and "needs 4 devices, 2 free; 1 of 2 nodes not usable" in j["reason"])(c.job(job)), 15)
    took = time.monotonic() - began
    wait_for("all of its ranks to be gone", lambda: not any(alive(p) for p in pids), 10)
    if "node_lost" not in [e["kind"] for e in c.json("events")["events"]]:
        raise Failure("no event says that the node is lost")
    c.start_worker("node-1")
    c.wait_done(job)
    compare("node", want, c.final(job))
    if c.job(job)["wall_s"] < 1:
        raise Failure(f"wall_s: found {c.job(job)['wall_s']}")
    verify(c, job)
    print(f"    lost after {took:.1f} s with a lease of 3 s", flush=True)
    # With room elsewhere only its ranks move.
    c.start_worker("node-2")
    c.wait_ready(3)
    job = submit(c, "moved", *paced(40))
    c.wait_step(job, 14)
    before = {r["rank"]: r for r in c.describe(job)["plan"]["ranks"]}
    victim = before[3]["node"]
    c.kill_node(victim)
    c.wait_done(job)
    compare("moved", want, c.final(job))
    plan = {r["rank"]: r for r in c.describe(job)["plan"]["ranks"]}
    if any(plan[r]["node"] == victim for r in plan) or any(plan[r]["incarnation"] != before[r]["incarnation"] for r in plan if before[r]["node"] != victim):
        raise Failure(f"a lost node: ranks were {before}, became {plan}")
    c.start_worker(victim)
    c.wait_ready(3)
    c.stop("node-2")


def case_wall(c, want):
    """wall_s and log_dir outlive the controller."""
    job = submit(c, "wall", *paced(20), "--set", "train.steps=1000000")
    c.wait_step(job, 3)
    time.sleep(1)
    c.stop("fp8d", signal.SIGKILL)
    c.start_controller()
    j = c.job(job)
    if j["wall_s"] < 1:
        raise Failure(f"wall_s after a restart of the controller: found {j['wall_s']}, expected more than 1")
    c.ctl("cancel", str(job), "--now")
    j = c.wait_done(job, state="CANCELLED")
    if j["wall_s"] < 1:
        raise Failure(f"wall_s of a job that outlived its controller: found {j['wall_s']}, expected more than 1")
    home = os.path.realpath(c.home)
    if not j["log_dir"].startswith(home) or not os.path.exists(j["log_dir"] + "/rank0.log"):
        raise Failure(f"log_dir: found {j['log_dir']!r}, expected a folder under {home} that has rank0.log")


def case_stuck(c, want):
    """A stopped process answers nobody: the others name it, and it is replaced without waiting for it to park."""
    job = submit(c, "stuck", *paced(40), "--set", "recovery.collective_timeout_ms=1000")
    c.wait_step(job, 8)
    pid = c.kill_rank(job, 2, signal.SIGSTOP)
    began = time.monotonic()
    wait_for("the recovery", lambda: "recovered" in kinds(c, job), 20, 0.02)
    took = time.monotonic() - began
    c.wait_done(job)
    compare("stuck", want, c.final(job))
    if alive(pid):
        raise Failure("the stopped rank lives")
    lost = [e for e in c.events(job)["events"] if e["kind"] == "rank_lost"]
    if [e["rank"] for e in lost] != [2] or "stuck" not in lost[0]["text"]:
        raise Failure(f"who was lost: found {[e['text'] for e in lost]}, expected rank 2 alone, stuck")
    if took > 5 * float(os.environ.get("FP8_TEST_SLOWDOWN", "1")):
        raise Failure(f"a stuck rank: {took:.1f} s to the first new step with a timeout of 1 s")
    print(f"    {took:.2f} s from SIGSTOP to the first new step, timeout 1 s", flush=True)


CASES = {"wall": case_wall, "notice": case_notice, "away": case_away, "cancel": case_cancel, "save": case_save, "node": case_node, "stuck": case_stuck}


def main():
    build, names = sys.argv[1], sys.argv[2:] or list(CASES)
    with Bare(build, nodes=2, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3500ms", "--heartbeat", "500ms"]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        check("steps of the undisturbed job", sorted(want), list(range(1, STEPS + 1)))
        for n in names:
            CASES[n](c, want)
            print(f"ok  {n}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"leaving: {e}")
