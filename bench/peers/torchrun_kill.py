#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""torchrun elastic with four gloo ranks: SIGKILL of one -> first new step, `torchrun_kill.py KILLS [MONITOR_INTERVAL]` (0.1 s, its fastest). Prints {"new_step_s": [...]}. Exit 77 without torch."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

try:
    import torch  # noqa: F401
except ImportError:
    sys.exit(77)

kills = int(sys.argv[1])
interval = sys.argv[2] if len(sys.argv) > 2 else "0.1"
out = tempfile.mkdtemp(prefix="fp8-peer-")
env = dict(os.environ, OUT=out, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
run = subprocess.Popen(
    [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=4", "--max_restarts=100", f"--monitor_interval={interval}", "--master_port=29733",
     "-r", "2", "-t", "1", "--log_dir", out + "/log", os.path.join(os.path.dirname(os.path.abspath(__file__)), "ddp.py")],
    env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def events():
    try:
        with open(out + "/events") as f:
            return [json.loads(line) for line in f if line.endswith("\n")]
    except OSError:
        return []


def until(condition, seconds):
    end = time.time() + seconds
    while time.time() < end:
        value = condition(events())
        if value:
            return value
        if run.poll() is not None:
            sys.exit("torchrun ended by itself")
        time.sleep(0.02)
    sys.exit("torchrun made no step")


rnd = random.Random(7)
found = []
try:
    for k in range(kills):
        until(lambda ev: len([e for e in ev if e["what"] == "step" and e["life"] == k]) >= 12, 120)
        time.sleep(rnd.uniform(0, 1))
        ev = events()
        victim = next(e for e in ev if e["what"] == "start" and e["life"] == k and e["rank"] == k % 4)
        t0 = time.time()
        os.kill(victim["pid"], signal.SIGKILL)

        def fresh(ev):
            best = max(e["step"] for e in ev if e["what"] == "step" and e["life"] == k)
            return [e for e in ev if e["what"] == "step" and e["life"] > k and e["step"] > best]
        found.append(until(fresh, 120)[0]["t"] - t0)
finally:
    run.send_signal(signal.SIGTERM)
    try:
        run.wait(45)
    except subprocess.TimeoutExpired:
        run.kill()
    shutil.rmtree(out, ignore_errors=True)
print(json.dumps({"new_step_s": found}))
