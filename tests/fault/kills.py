#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`kills.py BUILD [--kills N] [--seed S]`: SIGKILLs of ranks, workers and the controller at every state of a save, on real processes.

A job of four ranks saves every fourth step.  Whom to kill and in which state of a save, which is seen in the folder that it makes, is drawn from the seed; when the state has come, the signal is
sent, and what the folder was just before and just after is counted.  After each kill: there is a commit, no step has two, every commit that is listed verifies, and what has a manifest is
whole.  In the end the job has the bits of an undisturbed one, and on the disk are its commits and nothing else.
"""
import argparse
import collections
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SLOWDOWN, SMALL, Failure, compare, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")
NODES, RANKS, KEEP = 2, 4, 3
STATES = ("none", "folder", "writing", "some", "prepared", "manifest", "renamed")
WHO = ("rank", "worker", "controller")
# Moves on before anybody outside can aim at it: the longest that is waited for a state to be there when looked at.
PATIENCE_S = 4


def look(folder, done):
    """The newest save that is not known as over: its folder's name and its state."""
    newest = max((d for d in os.listdir(folder) if d.startswith("step_") and d not in done), key=lambda d: int(d[5:13]), default=None)
    if newest is None:
        return None, "none"
    try:
        files = os.listdir(f"{folder}/{newest}")
    except FileNotFoundError:
        return newest, "none"
    shards = [f for f in files if f.startswith("shard-") and f.endswith(".safetensors")]
    if "manifest.json" in files:
        return newest, "renamed"
    if any("manifest" in f for f in files):
        return newest, "manifest"
    if len(shards) == RANKS:
        return newest, "prepared"
    if shards:
        return newest, "some"
    return newest, "writing" if any(f.startswith(".shard-") for f in files) else "folder"


class Kills:
    def __init__(self, c, job, folder, rng):
        self.c, self.job, self.folder, self.rng = c, job, folder, rng
        self.count = collections.Counter()
        self.commits_checked, self.rank_kills = 0, 0

    def listed(self):
        return self.c.json("ckpt", "ls", str(self.job))["checkpoints"]

    def aim(self, state):
        """Until a save is in this state; the state that it really was in when it was looked at last."""
        done = {d for d in os.listdir(self.folder) if os.path.exists(f"{self.folder}/{d}/manifest.json")} if state != "renamed" else set(os.listdir(self.folder))
        time.sleep(self.rng.uniform(0, 0.05))
        end, seen = time.monotonic() + PATIENCE_S * SLOWDOWN, "none"
        while time.monotonic() < end:
            name, seen = look(self.folder, done)
            if seen == state:
                return seen
            if seen == "renamed":
                done.add(name)
        return seen

    def pids(self):
        return {r: p for r, p in self.c.pids(self.job).items() if p}

    def kill(self, who, state):
        c = self.c
        if who == "rank":
            pids = wait_for("all ranks", lambda: (lambda p: p if len(p) == RANKS else None)(self.pids()), 30)
            pid = pids[self.rng.randrange(RANKS)]
            seen = self.aim(state)
            os.kill(pid, signal.SIGKILL)
            self.rank_kills += 1
        else:
            name = "fp8d" if who == "controller" else f"node-{self.rng.randrange(NODES)}"
            seen = self.aim(state)
            c.stop(name, signal.SIGKILL)
            time.sleep(self.rng.choice((0, 0, 0.2)))
            if who == "controller":
                c.start_controller()
            else:
                c.start_worker(name)
        self.count[(who, seen)] += 1

    def check(self, had):
        """Retention may remove a folder between the listing and our look: then it is listed no more."""
        listed = self.listed()
        steps = [k["step"] for k in listed]
        if not steps or len(set(steps)) != len(steps):
            raise Failure(f"commits of steps {steps}: expected at least one, and each step once")
        if max(steps) < had:
            raise Failure(f"the newest commit is of step {max(steps)}, it was {had}")
        for k in listed:
            p = self.c.ctl("ckpt", "verify", k["path"], check=False)
            if p.returncode != 0 and k["path"] in [x["path"] for x in self.listed()]:
                raise Failure(f"{k['path']} is committed and does not verify: {p.stdout}{p.stderr}")
            self.commits_checked += p.returncode == 0
        return max(steps)

    def go_on(self):
        """Training and saving again."""
        newest = max(k["step"] for k in self.listed())
        wait_for("a new commit", lambda: max((k["step"] for k in self.listed()), default=0) > newest, 60, 0.1)


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=4", "--set", f"checkpoint.keep_last={KEEP}",
                    "--set", "train.steps=100000", "--set", "recovery.max_restarts=-1", "--set", "recovery.same_cause_limit=1000", "--set", "train.global_batch=2",
                    "--set", "data.seq_len=32", "--set", "checkpoint.at_end=false", "--set", "metrics.max_bytes=1000000000", *more)


def table(count):
    print(f"{'':12}" + "".join(f"{s:>10}" for s in STATES) + f"{'':>2}all", flush=True)
    for who in WHO:
        print(f"{who:12}" + "".join(f"{count[(who, s)]:>10}" for s in STATES) + f"{sum(v for (w, _), v in count.items() if w == who):>5}", flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("build")
    a.add_argument("--kills", type=int, default=63)
    a.add_argument("--seed", type=int, default=time.time_ns() % 1000000)
    args = a.parse_args()
    rng = random.Random(args.seed)
    print(f"seed {args.seed}", flush=True)
    # Every pair once before any comes again.
    plan = []
    while len(plan) < args.kills:
        pairs = [(w, s) for w in WHO for s in STATES]
        rng.shuffle(pairs)
        plan += pairs
    with Bare(args.build, nodes=NODES, devices=2, controller=["--allow-test-hooks"]) as c:
        # Slowed down, so that a save's states last long enough to be aimed at.
        job = submit(c, "killed", "--set", "checkpoint.bandwidth=20000000", "--set", "test.slow_ms=10")
        folder = f"{c.home}/ckpt-killed"
        k = Kills(c, job, folder, rng)
        wait_for("a commit", lambda: k.listed(), 60)
        had = 0
        for who, state in plan[:args.kills]:
            k.kill(who, state)
            had = k.check(had)
            k.go_on()
        had = k.check(had)
        restarts = c.job(job)["restarts"]
        if restarts < k.rank_kills:
            raise Failure(f"found {restarts} recoveries, expected at least {k.rank_kills}: was anything killed?")
        c.end(job)
        k.check(had)
        if args.kills >= len(WHO) * len(STATES):
            kept = {x["path"] for x in k.listed()}
            try:
                wait_for("what was cut short to be cleared", lambda: {f"{folder}/{d}" for d in os.listdir(folder)} == kept, 20)
            except Failure as e:
                raise Failure(f"{e}: found {sorted(os.listdir(folder))}, listed {sorted(kept)}") from None
        got = c.final(job)
        last = max(got)
        compare("killed", c.undisturbed(submit(c, "calm"), last), got)
        table(k.count)
        print(f"ok  {sum(k.count.values())} SIGKILLs, seed {args.seed}: {restarts} recoveries, {k.commits_checked} commits verified, {last} steps equal bit for bit", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"kills: {e}")
