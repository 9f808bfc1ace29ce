#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`diagnose.py BUILD`: steps far longer than the collective timeout are no hang; a stopped rank is named while the job hangs, with where it stood, and `why` keeps that; one that is slower
than the others is told of."""
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SLOWDOWN, SMALL, Failure, compare, wait_for  # noqa: E402

# A stopped rank ends by its own timer when its lease is over: a long step and the timeout must fit into that.
SLOWER = min(SLOWDOWN, 2)
TIMEOUT_MS = int(1200 * SLOWER)


def stragglers(c):
    """One rank sleeps in each step; when both do, which nothing that a loaded machine adds outweighs, none is named."""
    calm, slow = (c.submit(os.path.join(ROOT, "tests/fault/job.yaml"), "--name", name, *SMALL, "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", f"checkpoint.dir={c.home}/{name}",
                           "--set", "train.steps=20", "--set", "metrics.straggler_steps=4", "--set", "metrics.straggler_percent=100", "--set", f"test.slow_rank={rank}", "--set", f"test.slow_ms={int(ms * SLOWER)}")
                  for name, rank, ms in (("calm", -1, 100), ("slow", 1, 250)))
    for job in (calm, slow):
        c.wait_done(job)
    told = {job: [e for e in c.events(job)["events"] if e["kind"] == "straggler"] for job in (calm, slow)}
    if told[calm]:
        raise Failure(f"a calm job: found {told[calm][0]['text']}, expected nothing")
    if [e["rank"] for e in told[slow]] != [1] or "phase forward" not in told[slow][0]["text"]:
        raise Failure(f"rank 1 sleeps: found {told[slow]}, expected it to be named once, in phase forward")
    print(f"ok  {told[slow][0]['text']}", flush=True)
    return calm


def corruption(c, calm):
    """A bit of a parameter flips on rank 1: found in that step, which is done again, and every loss is the calm job's."""
    job = c.submit(os.path.join(ROOT, "tests/fault/job.yaml"), "--name", "flip", *SMALL, "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", f"checkpoint.dir={c.home}/flip",
                   "--set", "train.steps=20", "--set", "recovery.checksum_every=1", "--set", "test.flip_step=12", "--set", "test.flip_rank=1")
    c.wait_done(job)
    told = [e["text"] for e in c.events(job)["events"] if e["kind"] == "checksums_differ"]
    if len(told) != 1 or "in step 12" not in told[0] or "rank 0 on" not in told[0] or "1 on" not in told[0] or "nothing newer than step 11" not in told[0]:
        raise Failure(f"a flipped bit: found {told}, expected both replicas named once, in step 12")
    compare("a flipped bit", c.final(calm), c.final(job))
    print(f"ok  {told[0]}", flush=True)


def main():
    with Bare(sys.argv[1], nodes=2, devices=1, controller=["--allow-test-hooks", "--heartbeat", "200ms"]) as c:
        job = c.submit(os.path.join(ROOT, "tests/fault/job.yaml"), *SMALL, "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", "train.steps=1000", "--set", f"checkpoint.dir={c.home}/ckpt",
                       "--set", f"test.slow_ms={int(1.5 * TIMEOUT_MS)}", "--set", f"recovery.collective_timeout_ms={TIMEOUT_MS}")
        c.wait_step(job, 2)
        told = [e for e in c.events(job)["events"] if e["kind"] in ("rank_fault", "diagnosis", "rank_lost")]
        if told:
            raise Failure(f"steps of {1.5 * TIMEOUT_MS:.0f} ms with a timeout of {TIMEOUT_MS} ms: found {told[0]['text']}, expected nothing")
        print(f"ok  two steps longer than the timeout of {TIMEOUT_MS} ms: nobody is accused", flush=True)
        pid = c.kill_rank(job, 1, signal.SIGSTOP)

        def named():
            d = c.json("diagnose", str(job))
            return d["culprit"] == 1 and d
        d = wait_for("rank 1 to be named", named, 10, 0.1)
        rank = d["ranks"][1]
        frames = [f for t in rank["threads"] for f in t["frames"]]
        if not d["stuck"] or rank["pid"] != pid or rank["state"] != "stopped" or "rank 1 on" not in d["verdict"] or [1] not in [o["missing"] for o in d["open"]] or not rank["threads"]:
            raise Failure(f"a stopped rank: found {d['verdict']!r}, {rank['state']}, open {d['open']}")
        if os.path.exists("/usr/include/elfutils/libdwfl.h") and not any(f.startswith("main+") for f in frames):
            raise Failure(f"stacks of rank 1: found {frames} ({rank['note']}), expected one with main")
        print(f"ok  {d['verdict']}", flush=True)
        wait_for("the recovery", lambda: any(e["kind"] == "recovered" for e in c.events(job)["events"]), 30)
        incident = c.json("why", str(job))["incidents"][0]
        seen = [e["text"] for e in incident["seen"] if e["kind"] == "diagnosis"]
        if len(seen) != 1 or not seen[0].startswith("rank 1 on") or "main thread stopped" not in seen[0]:
            raise Failure(f"why: found {[e['text'] for e in incident['seen']]}, expected where rank 1 stood")
        print("ok  why keeps it", flush=True)
        c.ctl("cancel", str(job), "--now")
        corruption(c, stragglers(c))


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        print(f"FAILED  {e}", flush=True)
        sys.exit(1)
