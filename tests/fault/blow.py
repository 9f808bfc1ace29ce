# SPDX-License-Identifier: Apache-2.0
"""A job that a fault is done to, and what is seen of it from outside: shared by the faults of table.py."""
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from cluster import ROOT, compare, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
STEPS = 40
TIMEOUT_MS = 2000
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
        return [e["text"] for e in self.c.events(self.job)["events"] if e["kind"] in ("recovered", "failed", "rollback", "step_skipped", "rank_exited") and e["unix_ms"] >= since]

    def finish(self, want):
        self.c.wait_done(self.job)
        compare(self.name, want, self.c.final(self.job))


def ordinary(run, rank, cause, want, wait=60):
    """The common end: a new step, the cause, the same bits."""
    recover, again = run.new_step(wait)
    wait_for(f"{run.name}: its recovery to be told", run.causes, 20)
    detect = run.first_word()
    run.finish(want)
    told = run.causes()
    return dict(detect=detect, recover=recover, lost=again, named=any(re.search(cause, t) for t in told), bitwise=True, told=told[-1])
