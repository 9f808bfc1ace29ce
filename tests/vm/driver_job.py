#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`driver_job.py BUILD`, in the guest with fp8guard loaded: worker and spawner of a rank's node are stopped, so that nobody in user space keeps its lease. At the deadline the kernel ends
the rank, and what it had started in a session of its own; the job goes on elsewhere, and nothing of the old rank is younger than the new epoch."""
import os
import re
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tests"), os.path.join(ROOT, "tests/fault")]
from bare import Bare, gone  # noqa: E402
from blow import Run  # noqa: E402
from cluster import Failure, wait_for  # noqa: E402

TTL_S = 6
RANK = 0


def escape(rank_pid):
    """A process of the rank's control group that left its process group and session, as a data loader's daemon might."""
    with open(f"/proc/{rank_pid}/cgroup") as f:
        group = next(line.split(":", 2)[2].strip() for line in f if line.startswith("0::"))
    p = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(f"/sys/fs/cgroup{group}/cgroup.procs", "w") as f:
        f.write(str(p.pid))
    return p


def youngest(folder):
    return max((os.stat(os.path.join(d, f)).st_mtime, os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)


def lapses(build, since):
    """[(time, lateness)] of leases that the driver ended by killing, in seconds of the monotonic clock."""
    out = subprocess.run([build + "/tests/vm/guard", "events", "0.3"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = [(int(m[1]) / 1e9, int(m[2]) / 1e9) for m in re.finditer(r"^event 1 .* at (\d+) arg \d+ \d+ 1 (\d+) ", out, re.M)]
    return [f for f in found if f[0] >= since]


def held(c, node):
    """Until the node says that the driver holds leases: changed evidence is told once a minute."""
    def found():
        return next(k for k in c.json("node", "describe", node)["checks"] if k["check"] == "driver")

    try:
        wait_for("leases", lambda: found()["verdict"] == "ok" and re.search("holds [1-9]", found()["evidence"]), 90, 1)
    except Failure:
        raise Failure(f"found {found()}, expected leases held by the driver") from None


def fence(c, build):
    run = Run(c, "fenced", "--set", "parallel.tp=1", "--set", "parallel.pp=1", "--set", "parallel.dp=1", "--set", "train.steps=2000", "--set", "train.global_batch=1", "--set", "train.micro_batch=1",
              "--set", "data.seq_len=32", "--set", "checkpoint.every_steps=0", "--set", "checkpoint.at_end=false", "--set", "test.slow_ms=400")
    wait_for("step 4", lambda: c.step(run.job) >= 4, 120, 0.2)
    node, pid = run.node_of(RANK), c.pids(run.job)[RANK]
    held(c, node)
    escaped = escape(pid)
    stopped = [c.daemon_pid(node), c.spawner_pid(node)]
    before = time.monotonic()
    run.blow(lambda: [os.kill(p, signal.SIGSTOP) for p in stopped])
    wait_for("the rank's end", lambda: gone(pid), TTL_S + 5, 0.002)
    ended = time.time()
    wait_for("the end of what escaped from its process group", lambda: escaped.poll() is not None, 1, 0.002)
    fled = time.time()
    lapsed = lapses(build, before)
    if not lapsed:
        raise Failure("the rank and what it started are gone, but the driver tells of no lease that was over")
    recover, _ = run.new_step(120)
    if run.node_of(RANK) == node:
        raise Failure(f"rank {RANK} is on {node} still")
    epoch = c.job(run.job)["epoch"]
    first = min(r["t"] for r in c.rows(run.job) if r["epoch"] == epoch)
    wrote, what = youngest(f"{c.home}/nodes/{node}/jobs/{run.job}")
    planned = min(e["unix_ms"] for e in c.events(run.job)["events"] if e["kind"] == "recovery_started" and e["unix_ms"] >= run.t0 * 1e3) / 1e3
    print(f"FIGURE: worker and spawner stopped, lease of {TTL_S} s: the driver killed {lapsed[0][0] - before:.3f} s later, {lapsed[0][1] * 1e3:.3f} ms after the deadline; rank seen gone at "
          f"{ended - run.t0:.3f} s, what it had started in another session at {fled - run.t0:.3f} s", flush=True)
    print(f"FIGURE: the controller's recovery began at {planned - run.t0:.3f} s, epoch {epoch} on another node made its first new step at {recover:.3f} s", flush=True)
    print(f"FIGURE: last write of the old rank {wrote - run.t0:+.3f} s, first of the new epoch {first - run.t0:+.3f} s", flush=True)
    if not wrote <= ended + 0.01 <= first:
        raise Failure(f"{what} was written {wrote - run.t0:.3f} s after the stop, the rank's end was seen at {ended - run.t0:.3f} s, the new epoch's first step at {first - run.t0:.3f} s")
    for p in stopped:
        os.kill(p, signal.SIGCONT)
    c.ctl("cancel", str(run.job))
    log = f"{c.home}/nodes/{node}/worker.log"
    with open(log) as f:
        wait_for("the spawner to tell the cause", lambda: re.search(r"by the driver, [\d.]+ ms after the deadline", f.read()), 20, 0.5)


def main():
    build = sys.argv[1]
    with Bare(build, nodes=2, devices=1, controller=["--allow-test-hooks", "--lease-ttl", f"{TTL_S}s", "--heartbeat", "600ms"]) as c:
        fence(c, build)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
