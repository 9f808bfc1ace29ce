#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`storage.py BUILD SHIM [CASE...]`: storage that is full, read-only, stalled or failing while a job saves.

Each is told by an event of its own, the job trains on without a restart, the last good commit stays and verifies, and saves are committed again when the storage is
well.  Full and read-only are a small tmpfs (root is needed to mount it), stalled and failing a preloaded library.
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from cluster import ROOT, SMALL, Cluster, Failure, paced, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
MIB = 1 << 20


class Storage:
    """A folder for checkpoints, and what can be done to it."""
    def __init__(self, c, name, tmpfs):
        self.dir, self.tmpfs = os.path.join(c.home, "ckpt-" + name), tmpfs
        self.word = os.environ["FP8_TEST_STORAGE"]
        self.filler = os.path.join(self.dir, "filler")
        os.mkdir(self.dir)
        if tmpfs:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "fp8ctl-test", self.dir], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *a):
        self.well()
        if self.tmpfs:
            subprocess.run(["umount", "-l", self.dir], check=False)

    def say(self, word):
        with open(self.word + ".new", "w") as h:
            h.write(word)
        os.replace(self.word + ".new", self.word)

    def fill(self):
        with open(self.filler, "wb", buffering=0) as h:
            try:
                while True:
                    h.write(b"x" * MIB)
            except OSError:
                pass

    def read_only(self):
        # Refused while a shard is open for writing.
        wait_for("a moment without a write", lambda: subprocess.run(["mount", "-o", "remount,ro", self.dir], stderr=subprocess.DEVNULL, check=False).returncode == 0, 20, 0.002)

    def well(self):
        self.say("")
        if self.tmpfs:
            subprocess.run(["mount", "-o", "remount,rw", self.dir], check=False)
            if os.path.exists(self.filler):
                os.remove(self.filler)


def events(c, job, kind):
    return [e for e in c.events(job)["events"] if e["kind"] == kind]


def commits(c, job):
    return events(c, job, "checkpoint_committed")


def last_commit(c, job):
    listed = c.json("ckpt", "ls", str(job))["checkpoints"]
    return max(listed, key=lambda k: k["step"]) if listed else None


def check(c, name, storage, hurt, kind, text):
    job = c.submit(JOB, "--name", name, "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", "train.steps=1000000", *SMALL, *paced(20), "--set", "checkpoint.every_steps=4", "--set", "checkpoint.stall_timeout_ms=300",
                   "--set", "train.eval_every=0", "--set", f"checkpoint.dir={storage.dir}")
    wait_for("two commits", lambda: len(commits(c, job)) >= 2, 30)
    hurt()
    told = wait_for(f"event {kind}", lambda: events(c, job, kind), 20)
    if text not in told[0]["text"] or told[0]["severity"] != "error":
        raise Failure(f"{name}: found {told[0]}, expected an error with '{text}'")
    good, at = last_commit(c, job), c.step(job)
    c.wait_step(job, at + 8, 30)
    if name == "stalled":
        wait_for("event checkpoint_skipped", lambda: events(c, job, "checkpoint_skipped"), 10)
        if c.rows(job)[-1]["saves_skipped"] < 1:
            raise Failure(f"{name}: no skipped save in the metrics: {c.rows(job)[-1]}")
    if last_commit(c, job) != good:
        raise Failure(f"{name}: the last commit was {good}, now {last_commit(c, job)}")
    c.ctl("ckpt", "verify", good["path"])
    storage.well()
    again = wait_for("a commit after it", lambda: [k for k in [last_commit(c, job)] if k and k["step"] > good["step"]], 30)
    j = c.job(job)
    if j["restarts"] != 0 or j["state"].upper() != "RUNNING":
        raise Failure(f"{name}: found {j['state']} with {j['restarts']} restarts, expected a running job and none")
    c.ctl("cancel", str(job))
    c.wait_done(job, 30, "CANCELLED")
    print(f"ok  {name}: {told[0]['text']}; step {good['step']} stayed, {again[0]['step']} was committed after it", flush=True)


def can_mount(c):
    probe = os.path.join(c.home, "probe")
    os.mkdir(probe)
    ok = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "fp8ctl-test", probe], stderr=subprocess.DEVNULL, check=False).returncode == 0
    if ok:
        subprocess.run(["umount", probe], check=True)
    return ok


def at_the_end(c):
    """The last save stalls: the end of the job is not held up for ever, and is told."""
    with Storage(c, "end", False) as s:
        s.say("stall")
        job = c.submit(JOB, "--name", "end", "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", "train.steps=6", "--set", "optimizer.warmup_steps=0", "--set", "checkpoint.every_steps=0",
                       "--set", "checkpoint.stall_timeout_ms=300", "--set", f"checkpoint.dir={s.dir}")
        wait_for("event storage_stalled", lambda: events(c, job, "storage_stalled"), 30)
        wait_for("event checkpoint_dropped", lambda: events(c, job, "checkpoint_dropped"), 30)
        s.well()
        c.wait_done(job, 60)
        if (last_commit(c, job) or {}).get("step") != 6:
            raise Failure(f"end: found {last_commit(c, job)}, expected step 6: it is asked for again")
        print("ok  end: dropped while the storage stalled, asked for again and committed", flush=True)


def main():
    build, shim, names = sys.argv[1], sys.argv[2], sys.argv[3:] or ["full", "read_only", "stalled", "failing", "end"]
    word = f"/tmp/fp8ctl-test-storage.{os.getpid()}"
    # The address sanitizer wants to be the first library.
    os.environ.update(LD_PRELOAD=shim, FP8_TEST_STORAGE=word, ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0")
    try:
        with Cluster(build, nodes=1, devices=2, test_hooks=True) as c:
            mount = can_mount(c)
            for name in names:
                if name == "end":
                    at_the_end(c)
                    continue
                tmpfs = name in ("full", "read_only")
                if tmpfs and not mount:
                    print(f"skipped: {name}: no right to mount a tmpfs", flush=True)
                    continue
                with Storage(c, name, tmpfs) as s:
                    hurt, kind, text = {
                        "full": (s.fill, "storage_full", "No space left on device"),
                        "read_only": (s.read_only, "storage_read_only", "Read-only file system"),
                        "stalled": (lambda: s.say("stall"), "storage_stalled", "no progress for 300 ms"),
                        "failing": (lambda: s.say("eio"), "storage_failing", "Input/output error"),
                    }[name]
                    check(c, name, s, hurt, kind, text)
    finally:
        for f in (word, word + ".new"):
            if os.path.exists(f):
                os.remove(f)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"storage: {e}")
