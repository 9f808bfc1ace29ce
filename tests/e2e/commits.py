#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`commits.py BUILD [SEED]`: fp8d is killed again and again while checkpoints are committed every second step. Old or new, never half: after each kill every listed checkpoint is whole,
the job ends with the bits of an undisturbed one, and only what is listed is on the disk."""
import json
import os
import random
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, compare, paced, wait_for  # noqa: E402

try:
    import xxhash
except ImportError:
    xxhash = None

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")
KILLS = 6


def whole(k):
    """A committed checkpoint: the manifest is that of this step, each shard has its size, its own header's size, and (where Python can) its digest."""
    with open(k["path"] + "/manifest.json") as h:
        m = json.load(h)
    if m["step"] != k["step"]:
        raise Failure(f"{k['path']}: manifest of step {m['step']}, listed as {k['step']}")
    total = 0
    for s in m["shards"]:
        path = f"{k['path']}/{s['file']}"
        with open(path, "rb") as h:
            data = h.read()
        head = struct.unpack("<Q", data[:8])[0]
        end = max(t["data_offsets"][1] for n, t in json.loads(data[8:8 + head]).items() if n != "__metadata__")
        if len(data) != s["bytes"] or 8 + head + end != len(data):
            raise Failure(f"{path}: {len(data)} bytes, the manifest says {s['bytes']}, its header {8 + head + end}")
        if xxhash and s["digest"].split(":")[-1] != xxhash.xxh3_128_hexdigest(data):
            raise Failure(f"{path}: digest {xxhash.xxh3_128_hexdigest(data)}, the manifest says {s['digest']}")
        total += len(data)
    if not m["shards"] or total != k["bytes"]:
        raise Failure(f"{k['path']}: {total} bytes in {len(m['shards'])} shards, listed with {k['bytes']}")


def check_all(c, job):
    """Retention may remove a folder between the listing and our look: then it is listed no more."""
    for k in c.json("ckpt", "ls", str(job))["checkpoints"]:
        try:
            whole(k)
        except FileNotFoundError as e:
            if k["step"] in [x["step"] for x in c.json("ckpt", "ls", str(job))["checkpoints"]]:
                raise Failure(f"a committed checkpoint is not whole: {e}") from None


def submit(c, name, *more):
    return c.submit(JOB, "--name", name, *SMALL, *more, "--set", f"checkpoint.dir={c.home}/ckpt-{name}", "--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep_last=3")


def main():
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 1000000
    rng = random.Random(seed)
    print(f"seed {seed}", flush=True)
    with Bare(sys.argv[1], nodes=2, devices=2, controller=["--allow-test-hooks"]) as c:
        calm = submit(c, "calm")
        c.wait_done(calm)
        want = c.final(calm)
        job = submit(c, "killed", *paced(80))
        for i in range(KILLS):
            c.wait_step(job, 4 + 8 * i)
            time.sleep(rng.uniform(0, 0.15))
            c.stop("fp8d", signal.SIGKILL)
            time.sleep(rng.choice((0, 0.3, 0.7)))
            c.start_controller()
            check_all(c, job)
        j = c.wait_done(job)
        compare("killed", want, c.final(job))
        check_all(c, job)
        listed = c.json("ckpt", "ls", str(job))["checkpoints"]
        steps = [k["step"] for k in listed]
        if steps != [56, 58, 60] or j["checkpoint"] != listed[-1]["path"]:
            raise Failure(f"committed in the end: found steps {steps}, newest {j['checkpoint']}; expected 56, 58 and 60 (keep_last: 3)")
        if j["restarts"] != 0:
            raise Failure(f"the controller's death cost {j['restarts']} recoveries, expected none")
        folders = lambda: sorted(os.path.join(d, x) for d, ds, _ in os.walk(f"{c.home}/ckpt-killed") for x in ds if x.startswith("step_"))
        kept = {k["path"] for k in listed}
        wait_for("removed checkpoints to be gone", lambda: not [f for f in folders() if f not in kept and os.path.exists(f + "/manifest.json")], 20)
        try:
            wait_for("folders of saves that were cut short to be cleared", lambda: set(folders()) == kept, 10)
        except Failure as e:
            raise Failure(f"{e}: found {sorted(set(folders()) ^ kept)} too many or too few") from None
        print(f"ok  {KILLS} kills of fp8d: {len(want)} steps equal bit for bit; {sorted(os.path.basename(f) for f in kept)} are there and nothing else", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"commits: {e}")
