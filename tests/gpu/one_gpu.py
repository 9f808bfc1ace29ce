#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Recovery on one GPU that several ranks share, through fp8d and fp8-worker; they talk by copies on the device (NCCL takes no GPU twice).

`one_gpu.py BUILD [CASE...]`: BUILD holds the programs (a build folder, or bin/ of an unpacked bundle). Exit 77 without a GPU.
Cases: plain (SIGKILL of each rank of dp=2, no standby), warm (the same with a warm standby on a third device: program loaded, context made, buffers there), stop (SIGSTOP with a warm standby),
worker (a worker, its spawner and its rank are lost; another worker has a warm standby).
Losses must be those of the undisturbed job, bit for bit. With a warm standby a new step must come in under 1 s; it includes that step, which is printed beside it.
"""
import os
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import Failure, median, wait_for  # noqa: E402
from two_gpus import own_text, speed, submit  # noqa: E402

STEPS = 120
WARM_S = 1.0


class Shared(Bare):
    """Workers whose devices are all the first GPU."""

    def __init__(self, build, nodes, devices):
        super().__init__(build, nodes=nodes, devices=devices, controller=["--allow-test-hooks"], worker=["--device-kind", "cuda"])
        for i in range(nodes):
            self.env[f"node-{i}"] = {"CUDA_VISIBLE_DEVICES": ",".join(["0"] * devices)}
        self.failed = 0
        self.text = os.environ.get("FP8_TEXT") or own_text(self)


def job(c, name, standby):
    return submit(c, name, sets=("--set", f"recovery.standby={standby}"), dp=2, steps=STEPS, replica_every=10)


def undisturbed(c):
    j = job(c, "undisturbed", 0)
    c.wait_done(j, 120)
    print(f"undisturbed: {speed(c, j):.1f} ms a step", flush=True)
    return {s: r["loss_hex"] for s, r in c.final(j).items()}


def ready(c, j):
    return sum(e["kind"] == "standby_ready" and "device open" in e["text"] for e in c.events(j)["events"])


def disturbed(c, want, name, standby, bound, blow):
    """Seconds from blow(job, pids) to the first new step; what fp8ctl why says of it is printed."""
    j = job(c, name, standby)
    if standby:
        wait_for("warm standbys", lambda: ready(c, j) >= standby, 60)
    c.wait_step(j, 45, 60)
    pids = c.pids(j)
    before = c.step(j)
    t = time.time()
    blow(j, pids)
    seen = wait_for("a new step", lambda: next((r for r in c.rows(j) if r["epoch"] > 1 and r["step"] > before), None), 60, 0.005)
    took = seen["t"] - t
    anew = [r for r in c.rows(j) if r["epoch"] > 1]
    again = sum(1 for r in anew if r["step"] <= before)
    c.wait_done(j, 120)
    got = {s: r["loss_hex"] for s, r in c.final(j).items()}
    bad = [s for s in want if want[s] != got.get(s)]
    ok = not bad and took < bound
    c.failed += not ok
    print(f"{'ok' if ok else 'FAILED'}  {name}: {took:.3f} s to step {seen['step']}, whose own time is {seen['ms']:.0f} ms (bound {bound} s), {again} steps done again, {len(bad)} of {len(want)} losses differ",
          "first steps after it: " + ", ".join(f"{r['ms']:.0f} ms" for r in anew[:8]), *c.ctl("why", str(j)).stdout.splitlines(), sep="\n      ", flush=True)
    return took


def kill(rank, sig=signal.SIGKILL):
    return lambda j, pids: os.kill(pids[rank], sig)


def on_one_node(build, cases):
    with Shared(build, 1, 3) as c:
        want = undisturbed(c)
        if "plain" in cases:
            for rank in (0, 1):
                disturbed(c, want, f"plain-{rank}", 0, 10, kill(rank))
        if "warm" in cases:
            times = [disturbed(c, want, f"warm-{i}", 1, WARM_S, kill(i % 2)) for i in range(6)]
            print(f"warm: median {median(times):.3f} s, {min(times):.3f} to {max(times):.3f}", flush=True)
        if "stop" in cases:
            disturbed(c, want, "stop", 1, 3 + 0.5 + WARM_S, kill(1, signal.SIGSTOP))
        return c.failed


def on_two_nodes(build):
    with Shared(build, 3, 1) as c:
        want = undisturbed(c)

        def blow(j, pids):
            node = next(r["node"] for r in c.describe(j)["plan"]["ranks"] if r["rank"] == 0)
            c.kill_node(node)

        disturbed(c, want, "worker", 1, WARM_S, blow)
        return c.failed


def main():
    build, cases = sys.argv[1], sys.argv[2:] or ["plain", "warm", "stop", "worker"]
    if not os.path.exists("/dev/nvidia0"):
        print("skipped: no GPU")
        return 77
    failed = 0
    try:
        if set(cases) - {"worker"}:
            failed += on_one_node(build, cases)
        if "worker" in cases:
            failed += on_two_nodes(build)
    except (Failure, OSError):
        traceback.print_exc()
        failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
