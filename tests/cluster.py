# SPDX-License-Identifier: Apache-2.0
"""A local cluster for tests and benchmarks: brought up and driven by the real fp8ctl, watched through its JSON output and metrics files."""
import glob
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SLOWDOWN = float(os.environ.get("FP8_TEST_SLOWDOWN", "1"))
# Under sanitizers the arithmetic, which tests/kernels and tests/train cover, is most of the time: half of it.
SMALLER = ["--set", "train.global_batch=4", "--set", "train.micro_batch=1"] if SLOWDOWN > 1 else []
# Goes on until the test has done all that it wants, however long a loaded machine makes that; what it must have computed is said by another one, as far as it came.
ENDLESS = ["--set", "train.steps=1000000", "--set", "metrics.max_bytes=1000000000"]
# Where it matters how a job goes on and not how large the sums are: an eighth of a step of tests/fault/job.yaml.
SMALL = [x for s in ("model.hidden_size=64", "model.intermediate_size=128", "model.head_dim=16", "data.seq_len=16", "train.global_batch=4", "train.micro_batch=1") for x in ("--set", s)]


class Failure(Exception):
    pass


def wait_for(what, condition, seconds, interval=0.05):
    """Polls condition() until it is true; its value. Failure after `seconds` (times FP8_TEST_SLOWDOWN)."""
    end = time.monotonic() + seconds * SLOWDOWN
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"waited {seconds * SLOWDOWN:.0f} s in vain for {what}")
        time.sleep(interval)


def paced(ms):
    """Every step sleeps so long (a test hook): the job lasts as long as the test needs to act on it, which a loaded machine must not decide, and costs nothing meanwhile."""
    return ["--set", f"test.slow_ms={int(ms * min(SLOWDOWN, 2))}"]


class Cluster:
    def __init__(self, build, nodes=4, devices=2, test_hooks=False, keep=False, device="cpu"):
        self.build = os.path.abspath(build)
        self.home = tempfile.mkdtemp(prefix="fp8c-")
        self.nodes, self.devices, self.test_hooks, self.keep, self.device = nodes, devices, test_hooks, keep, device

    def __enter__(self):
        self.up()
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            self.show_logs()
        self.ctl("cluster", "down", check=False)
        if not self.keep and kind is None:
            shutil.rmtree(self.home, ignore_errors=True)

    def up(self):
        extra = ["--allow-test-hooks"] if self.test_hooks else []
        self.ctl("cluster", "up", "--nodes", str(self.nodes), "--devices", str(self.devices), "--device", self.device, *extra, timeout=60)

    def show_logs(self):
        for f in sorted(glob.glob(self.home + "/*.log") + glob.glob(self.home + "/nodes/*/*.log") + glob.glob(self.home + "/nodes/*/jobs/*/*.log")):
            with open(f, errors="replace") as h:
                text = h.read()[-3000:]
            if text.strip():
                print(f"---- {os.path.relpath(f, self.home)}\n{text}", flush=True)

    def ctl(self, *args, check=True, timeout=120, **kw):
        env = dict(os.environ, FP8CTL_HOME=self.home)
        env.pop("FP8CTL_CONTROLLER", None)
        p = subprocess.run([self.build + "/fp8ctl", *args], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, timeout=timeout * SLOWDOWN, **kw)
        if check and p.returncode != 0:
            raise Failure(f"fp8ctl {' '.join(args)}: exit {p.returncode}\n{p.stdout[-2000:]}{p.stderr[-2000:]}")
        return p

    def json(self, *args, **kw):
        out = self.ctl(*args, "-o", "json", **kw).stdout
        try:
            return json.loads(out)
        except ValueError as e:
            raise Failure(f"fp8ctl {' '.join(args)} -o json printed no JSON ({e}): {out[:500]!r}")

    def submit(self, job_file, *args):
        j = self.json("submit", job_file, *SMALLER, *args)
        return j["id"] if "id" in j else j["job"]["id"]

    def job(self, job):
        return self.json("get", str(job))

    def describe(self, job):
        return self.json("describe", str(job))

    def pids(self, job):
        """{rank: pid} of the ranks that live."""
        d = self.describe(job)
        plan = d.get("plan") or d["job"]["plan"]
        return {r["rank"]: r["pid"] for r in plan["ranks"] if r["pid"]}

    def rows(self, job):
        """Every metrics row as it was written, in order of time: [{step, epoch, t, loss_hex, digest, ...}]."""
        rows = []
        for f in glob.glob(f"{self.home}/nodes/*/jobs/{job}/metrics.jsonl.1") + glob.glob(f"{self.home}/nodes/*/jobs/{job}/metrics.jsonl"):
            with open(f) as h:
                for line in h:
                    if line.endswith("\n"):
                        row = json.loads(line)
                        if "step" in row:  # else of FP8 tensors
                            rows.append(row)
        rows.sort(key=lambda r: r["t"])
        return rows

    def final(self, job):
        """{step: row}, of the highest epoch each."""
        best = {}
        for r in self.rows(job):
            if r["step"] not in best or r["epoch"] >= best[r["step"]]["epoch"]:
                best[r["step"]] = r
        return best

    def check_goodput(self, job):
        """What `fp8ctl goodput` says, which must be what is computed here from the rows of the steps that count: new steps x median time from one to the next / wall time."""
        final = sorted(self.final(job).values(), key=lambda r: r["step"])
        step = median([b["t"] - a["t"] for a, b in zip(final, final[1:]) if a["epoch"] == b["epoch"]])
        outside = len(final) * step / (final[-1]["t"] - final[0]["t"] + final[0]["ms"] / 1e3)
        g = self.json("goodput", str(job))
        parts = sum(g[k + "_s"] for k in ("productive", "lost", "recovering", "checkpointing", "skipped", "waiting", "other"))
        if abs(g["goodput"] - min(outside, 1)) > 0.01 * SLOWDOWN or abs(parts - g["wall_s"]) > 0.001 or g["recovering_s"] <= 0:
            raise Failure(f"goodput: found {g}, outside {outside:.4f}, sum of parts {parts:.3f}; expected them to agree within a point and the parts to be the whole")
        print(f"ok  goodput {g['goodput']:.3f}, outside {outside:.3f}", flush=True)
        return g

    def step(self, job):
        return max((r["step"] for r in self.rows(job)), default=0)

    def wait_step(self, job, step, seconds=120):
        def reached():
            state = None
            if self.step(job) >= step:
                return True
            if int(time.monotonic() * 2) % 4 == 0:
                state = self.job(job)["state"].upper()
            if state in ("FAILED", "CANCELLED"):
                raise Failure(f"job {job} is {state}: {self.job(job)}")
            return False
        wait_for(f"step {step} of job {job}", reached, seconds, 0.02)

    def wait_done(self, job, seconds=300, state="COMPLETED"):
        ends = ("COMPLETED", "FAILED", "CANCELLED")
        j = wait_for(f"the end of job {job}", lambda: (lambda x: x if x["state"].upper() in ends else None)(self.job(job)), seconds, 0.3)
        if j["state"].upper() != state:
            raise Failure(f"job {job}: found {j['state']} ({j.get('failure') or j.get('reason')}), expected {state}")
        return j

    def end(self, job):
        """Cancelled at once; the last step that it did."""
        self.ctl("cancel", str(job), "--now")
        self.wait_done(job, state="CANCELLED")
        return self.step(job)

    def undisturbed(self, job, steps):
        """{step: row} up to there, of a job without an end."""
        self.wait_step(job, steps)
        self.end(job)
        return {s: r for s, r in self.final(job).items() if s <= steps}

    def kill_rank(self, job, rank, sig=signal.SIGKILL):
        pid = wait_for(f"a pid of rank {rank}", lambda: self.pids(job).get(rank), 30)
        os.kill(pid, sig)
        return pid

    def daemon_pid(self, name):
        """pid of "fp8d" or of a node's worker, from cluster status."""
        s = self.json("cluster", "status")
        for d in s["daemons"]:
            if d["name"] == name:
                return d["pid"]
        raise Failure(f"no daemon {name} in {s}")

    def events(self, job):
        return self.json("events", str(job))


def compare(name, want, got, first=1):
    """Bitwise: losses and state digests of every step."""
    if sorted(want) != sorted(got):
        raise Failure(f"{name}: steps differ: expected {min(want)}..{max(want)} ({len(want)}), found {sorted(set(want) ^ set(got))[:10]} in one only")
    for s in sorted(want):
        if s < first:
            continue
        for key in ("loss_hex", "digest", "skipped"):
            if want[s][key] != got[s][key]:
                raise Failure(f"{name}: step {s}: {key} expected {want[s][key]}, found {got[s][key]} (epoch {got[s]['epoch']})")
        if want[s]["digest"] is None:
            raise Failure(f"{name}: step {s} has no digest")


def median(v):
    v = sorted(v)
    n = len(v)
    return math.nan if not n else v[n // 2] if n % 2 else (v[n // 2 - 1] + v[n // 2]) / 2


def run_script(name, main, missing=None):
    """What a script ends with: its failure in one line, or why it cannot run here (status 77: skipped)."""
    if missing:
        print(f"skipped: {missing}")
        sys.exit(77)
    try:
        sys.exit(main())
    except Failure as e:
        sys.exit(f"{name}: {e}")
