#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`controller_kills.py BUILD [--kills N] [--seed S]`: SIGKILLs of the controller at random moments, its store a real one, while jobs come and go.

Small jobs are submitted, saved, requeued, cancelled and their ranks killed all the time, so that most moments are in the middle of some transition; the controller is killed between 0 and 0.3 s
after it answered again (every fifth time while it starts) and started at once, as a supervisor would.  In the end: every job that was accepted is known under one number and came to its end,
none ran twice (each step once in each epoch, one life a rank and incarnation), no device is taken, and the controller was never away for longer than a second.
"""
import argparse
import collections
import json
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SLOWDOWN, Failure, median, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
ENDS = ("COMPLETED", "FAILED", "CANCELLED")
AT_ONCE = 5
AWAY_S = 1.0


class Load:
    """Submits jobs and does things to them until told to stop. What it was promised, it remembers."""
    def __init__(self, c, seed):
        self.c, self.rng = c, random.Random(seed)
        self.accepted, self.unsure, self.cancelled = {}, [], set()
        self.counts = collections.Counter()
        self.over = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self.run)

    def submit(self):
        name = f"job-{len(self.accepted) + len(self.unsure)}"
        ranks = self.rng.choice((1, 1, 2))
        p = self.c.ctl("submit", JOB, "--name", name, "--skip-preflight", "-o", "name", "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", f"parallel.dp={ranks}",
                       "--set", f"train.steps={self.rng.randint(5, 40)}", "--set", "train.global_batch=2", "--set", "train.micro_batch=1", "--set", "data.seq_len=32", "--set", "optimizer.warmup_steps=2",
                       "--set", "metrics.digests=false", "--set", "recovery.max_restarts=-1", "--set", "recovery.same_cause_limit=1000", "--set", f"checkpoint.every_steps={self.rng.choice((0, 3))}",
                       "--set", f"checkpoint.dir={self.c.home}/ckpt-{name}", check=False)
        self.counts["submit"] += 1
        if p.returncode == 0:
            self.accepted[name] = int(p.stdout.split()[-1])
        elif p.returncode in (5, 6):
            self.unsure.append(name)
        else:
            raise Failure(f"submit: exit {p.returncode} {p.stderr}")

    def act(self, jobs):
        j = self.rng.choice(jobs)
        what = self.rng.choice(("cancel", "save", "requeue", "kill", "look", "look"))
        self.counts[what] += 1
        if what == "cancel":
            self.cancelled.add(j["id"])
            self.c.ctl("cancel", str(j["id"]), *self.rng.choice(((), ("--now",))), check=False)
        elif what == "kill":
            p = self.c.ctl("describe", str(j["id"]), "-o", "json", check=False)
            pids = [int(x.split(":")[1].strip(" ,\n")) for x in p.stdout.split("\n") if '"pid":' in x]
            for pid in [x for x in pids if x][:1]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        elif what != "look":
            self.c.ctl(what, str(j["id"]), check=False)

    def run(self):
        try:
            while not self.over.is_set():
                p = self.c.ctl("list", "-o", "json", check=False)
                if p.returncode != 0:
                    time.sleep(0.01)
                    continue
                jobs = [j for j in json.loads(p.stdout)["jobs"] if j["state"] not in ENDS]
                if len(jobs) < AT_ONCE:
                    self.submit()
                else:
                    self.act(jobs)
        except Exception as e:  # told by the main thread
            self.error = e


class Jobs(Bare):
    def back(self, since):
        """Until a controller answers; seconds it was away."""
        wait_for("the controller", lambda: self.ctl("list", "-o", "name", check=False, timeout=20).returncode == 0, 30, 0.005)
        return time.monotonic() - since


def check(c, load):
    everyone = c.json("list", "--all")["jobs"]
    by_name = collections.Counter(j["name"] for j in everyone)
    twice = [n for n, k in by_name.items() if k > 1]
    if twice:
        raise Failure(f"found jobs accepted twice: {twice}")
    for name, number in load.accepted.items():
        j = next((j for j in everyone if j["id"] == number), None)
        if not j or j["name"] != name:
            raise Failure(f"job {number} ({name}) was accepted, found {j}")
        if j["state"] == "FAILED" or (j["state"] == "CANCELLED" and number not in load.cancelled):
            raise Failure(f"job {number} ({name}): found {j['state']}: {j['failure'] or j['reason']}")
    for j in everyone:
        rows = collections.Counter((r["epoch"], r["step"]) for r in c.rows(j["id"]))
        again = [k for k, n in rows.items() if n > 1]
        if again:
            raise Failure(f"job {j['id']}: found steps done twice in one epoch: {again[:5]}")
        # Workers keep the folders of the 50 newest jobs.
        if j["state"] == "COMPLETED" and rows and sorted({s for _, s in rows}) != list(range(1, j["steps"] + 1)):
            raise Failure(f"job {j['id']} is COMPLETED: found {len(rows)} rows, expected every step of {j['steps']}")
    taken = [d for n in c.json("node", "list")["nodes"] for d in n["devices"] if d["job_id"]]
    if taken:
        raise Failure(f"found devices {taken} taken when all is over")
    return collections.Counter(j["state"] for j in everyone)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build")
    a.add_argument("--kills", type=int, default=20)
    a.add_argument("--seed", type=int, default=1)
    args = a.parse_args()
    rng = random.Random(args.seed)
    away = []
    with Jobs(args.build, nodes=2, devices=4, controller=["--lease-ttl", "10s", "--heartbeat", "300ms"]) as c:
        load = Load(c, args.seed)
        load.thread.start()
        try:
            for k in range(args.kills):
                time.sleep(rng.uniform(0, 0.3))
                since = time.monotonic()
                starts = 2 if k % 5 == 4 else 1
                for s in range(starts):
                    p = c.started.pop("fp8d")
                    p.kill()
                    p.wait()
                    c.launch_controller()
                    if s + 1 < starts:
                        time.sleep(rng.uniform(0, 0.08))
                        since = time.monotonic()
                away.append(c.back(since))
                if load.error:
                    raise load.error
                if (k + 1) % 50 == 0:
                    print(f"{k + 1} kills, {len(load.accepted)} jobs accepted, away for {median(away):.3f} s (median), {max(away):.3f} s at most", flush=True)
        finally:
            load.over.set()
            load.thread.join()
        if load.error:
            raise load.error
        wait_for("every job's end", lambda: all(j["state"] in ENDS for j in c.json("list")["jobs"]), 120, 0.3)
        states = check(c, load)
    over = [x for x in away if x > AWAY_S * SLOWDOWN]
    print(f"ok  {args.kills} kills (seed {args.seed}), {len(load.accepted)} jobs accepted and {len(load.unsure)} unsure, {dict(load.counts)}; they ended {dict(states)}; "
          f"away for {median(away):.3f} s (median), {max(away):.3f} s at most, {len(over)} times over {AWAY_S:g} s")
    return 1 if over else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as e:
        print(f"controller_kills: {e}", file=sys.stderr)
        sys.exit(1)
