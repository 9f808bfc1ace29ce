#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`node_loss.py BUILD`: whole nodes are lost (worker, spawner and ranks at once) and the job goes on from its peers' memory, bit for bit, without a checkpoint.

Five nodes of two devices, a job of eight ranks, so one node is a spare.  The first loss is for good: the ranks move to the spare when the lease is over.  The second
node comes back at once, with empty memory.  No checkpoint is ever taken, so what is resumed from can have come from nowhere else.
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SLOWDOWN, Failure, compare, wait_for  # noqa: E402

STEPS = 26
JOB = os.path.join(ROOT, "tests/fault/job.yaml")


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, "--set", f"train.steps={STEPS}", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=0",
                    "--set", "checkpoint.at_end=false", *more)


def nodes_of(c, job):
    d = c.describe(job)
    return {r["rank"]: r["node"] for r in (d.get("plan") or d["job"]["plan"])["ranks"]}


def recovered(c, job, n):
    return [e for e in c.events(job)["events"] if e["kind"] == "recovered"][n:]


def lose(c, job, name, restart):
    """Kills a node and waits until the job has made a new step; the step it was resumed from and where it stood."""
    before = len(recovered(c, job, 0))
    stood = c.step(job)
    c.kill_node(name)
    if restart:
        c.start_worker(name)
    told = wait_for(f"the recovery from the loss of {name}", lambda: recovered(c, job, before), 30)[-1]["text"]
    resumed = [e for e in c.events(job)["events"] if e["kind"] == "resumed"][-1]
    step = int(re.search(r"resuming from step (\d+)", told)[1])
    slices = re.search(r"slices: (\d+) from their own node's memory, (\d+) from peers' \((\d+) bytes\), (\d+) from disk", resumed["text"])
    if not slices or (int(slices[1]), int(slices[2]), int(slices[4])) != (6, 2, 0) or int(slices[3]) == 0:
        raise Failure(f"{name}: found '{resumed['text']}', expected 6 slices from their own node's memory, 2 from peers' and none from disk")
    if "2 of 8 slices from peers" not in told:
        raise Failure(f"{name}: found '{told}', expected it to name the peers")
    if resumed["ms"] > 1000 * SLOWDOWN:
        raise Failure(f"{name}: restore took {resumed['ms']:.0f} ms, expected less than 1 s")
    if [f for f in os.listdir(c.home) if f.startswith("ckpt-") and os.listdir(c.home + "/" + f)]:
        raise Failure(f"{name}: a checkpoint was written")
    # Seen before the kill; ranks that were ahead of the reporting one by then do not matter.
    print(f"ok  {name} lost at step {stood}{', back at once' if restart else ', its ranks move to the spare'}: resumed from step {step} in {resumed['ms']:.0f} ms", flush=True)
    if step == 0 or step + 4 < stood:
        raise Failure(f"{name}: resumed from step {step}, lost at step {stood} or later: expected the newest that all peers hold")


def main():
    with Bare(sys.argv[1], nodes=5, devices=2, controller=["--allow-test-hooks", "--lease-ttl", "3200ms", "--heartbeat", "300ms"]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "lost", "--set", "test.slow_ms=30")
        c.wait_step(job, 6)
        places = nodes_of(c, job)
        spare = next(f"node-{i}" for i in range(5) if f"node-{i}" not in places.values())
        lose(c, job, places[2], False)
        if set(nodes_of(c, job).values()) != set(places.values()) - {places[2]} | {spare}:
            raise Failure(f"placement: {places} became {nodes_of(c, job)}, expected {spare} in place of {places[2]}")
        c.wait_step(job, c.step(job) + 3)
        lose(c, job, places[4], True)
        c.wait_done(job)
        compare("lost", want, c.final(job))
        print(f"ok  {len(want)} steps equal bit for bit after two lost nodes", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"node_loss: {e}")
