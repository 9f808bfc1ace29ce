#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A batch made to overflow: that step is skipped on all ranks, nothing changes, the event names rank, layer and tensor."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from cluster import ROOT, SMALL, Cluster, Failure  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
TENSOR = "model.layers.1.mlp.up_proj.weight"


def storm(c, name, steps):
    return c.submit(JOB, *SMALL, "--set", "train.steps=40", "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "test.overflow_step=23",
                    "--set", f"test.overflow_steps={steps}", "--set", "precision.max_consecutive_skips=3", "--set", "test.overflow_rank=2",
                    "--set", f"test.overflow_tensor={TENSOR}")


def main():
    with Cluster(sys.argv[1], nodes=4, devices=2, test_hooks=True) as c:
        job = c.submit(JOB, *SMALL, "--set", "train.steps=14", "--set", f"checkpoint.dir={c.home}/ckpt", "--set", "test.overflow_step=9",
                       "--set", "test.overflow_rank=1", "--set", f"test.overflow_tensor={TENSOR}")
        j = c.wait_done(job)
        rows = c.final(job)
        skipped = [s for s in sorted(rows) if rows[s]["skipped"]]
        if skipped != [9] or j["skipped_steps"] != 1:
            raise Failure(f"skipped steps: found {skipped} and {j['skipped_steps']}, expected [9] and 1")
        if rows[9]["digest"] != rows[8]["digest"]:
            raise Failure("the skipped step changed master weights or moments")
        if rows[10]["digest"] == rows[9]["digest"]:
            raise Failure("step 10 changed nothing: the digest cannot be of the weights")
        if rows[9]["tokens"] <= rows[8]["tokens"]:
            raise Failure("the data position did not advance over the skipped step")
        events = [e for e in c.events(job)["events"] if e["kind"] == "step_skipped"]
        if len(events) != 1 or TENSOR not in events[0]["text"] or "rank 1" not in events[0]["text"]:
            raise Failure(f"events: found {[e['text'] for e in events]}, expected one that names rank 1 and {TENSOR}")
        print("ok  overflow:", events[0]["text"])
        # As many in a row as the job allows: back to the last commit, past those batches, and on to the end.
        job = storm(c, "passed", 3)
        j = c.wait_done(job)
        kinds = [e["kind"] for e in c.events(job)["events"]]
        if "rollback" not in kinds:
            raise Failure(f"a storm of overflows: found events {kinds}, expected a rollback")
        rows = c.final(job)
        if sorted(rows) != list(range(1, 41)) or any(rows[s]["skipped"] for s in rows):
            raise Failure(f"after the rollback: skipped {[s for s in rows if rows[s]['skipped']]}, {len(rows)} steps; expected 40 steps, none of them skipped")
        print("ok  storm passed: rolled back, went past the batches, finished")
        # More than that: the second time it stops, with the reason.
        j = c.wait_done(storm(c, "endless", 20), state="FAILED")
        if TENSOR not in j["failure"]:
            raise Failure(f"a storm without end: failure {j['failure']!r}, expected it to name {TENSOR}")
        print("ok  storm without end:", j["failure"])
    with Cluster(sys.argv[1], nodes=1, devices=1) as c:
        p = c.ctl("submit", JOB, "--set", "test.overflow_step=9", "--set", f"test.overflow_tensor={TENSOR}", check=False)
        if p.returncode != 2 or "without --allow-test-hooks" not in p.stderr:
            raise Failure(f"test hooks on an ordinary cluster: found exit {p.returncode} ({p.stderr!r}), expected 2 and a reason")
        print("ok  refused outside tests:", p.stderr.strip())


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"overflow: {e}")
