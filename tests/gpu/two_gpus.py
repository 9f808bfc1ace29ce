#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The job on two GPUs, through fp8d, fp8-worker and NCCL.

`two_gpus.py BUILD [CASE...]`: BUILD holds the programs (a build folder, or bin/ of an unpacked bundle). Exit 77 with fewer than two GPUs.
Cases: layouts (tp=2, pp=2, dp=2 against one GPU), kill, stop (SIGKILL, SIGSTOP of a rank while the job runs, 162M parameters, dp=2),
overflow (an infinity on one rank), scaling (llama-1b, dp=2 against one GPU).
"""
import os
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from cluster import Cluster, Failure, median, wait_for  # noqa: E402

# Losses of one GPU and of two differ by the order of sums and by blocks of other tokens: the tests of the CPU allow the same (docs/numerics.md).
TOLERANCE = 5e-3
# Within EARLY steps nothing has grown yet. Later, where the learning rate is at its top, rounding does: as much as another size of micro-batches makes in the same run, and some more.
EARLY, EARLY_TOLERANCE, TIMES_NOISE = 8, 1e-3, 4
JOB = """version: 1
name: two-gpus
model:
  preset: {preset}
data:
  path: {text}
  seq_len: {seq}
parallel: {{tp: {tp}, pp: {pp}, dp: {dp}}}
train: {{steps: {steps}, micro_batch: {micro}, global_batch: {batch}, eval_every: 0}}
precision: {{recipe: {recipe}}}
optimizer: {{lr: 0.0005, warmup_steps: 10}}
checkpoint: {{dir: {home}/ckpt-{name}, every_steps: 0, at_end: false, replica_every: {replica_every}}}
recovery: {{collective_timeout_ms: {timeout}}}
nccl: {{peer_copies: {peer}}}
metrics: {{digests: {digests}}}
"""


def submit(c, name, more="", sets=(), **kw):
    v = dict(preset="gpt2-162m", text=c.text, seq=1024, tp=1, pp=1, dp=1, steps=40, micro=4, batch=16, recipe="block", home=c.home, name=name, replica_every=1000,
             timeout=3000, digests="false", peer="true")
    v.update(kw)
    path = f"{c.home}/{name}.yaml"
    with open(path, "w") as f:
        f.write(JOB.format(**v) + more)
    return c.submit(path, "--name", name, *sets)


def losses(c, job):
    return {s: r["loss"] for s, r in c.final(job).items()}


def speed(c, job, skip=5):
    rows = [r for s, r in sorted(c.final(job).items()) if s > skip]
    return median([r["ms"] for r in rows])


def apart(got, want):
    """Greatest relative difference of losses in the first steps, and in all."""
    d = {s: abs(got[s] - want[s]) / want[s] for s in want}
    return max(d[s] for s in d if s <= EARLY), max(d.values())


def show(d):
    return f"relative difference at most {d[0]:.1e} in {EARLY} steps, {d[1]:.1e} in all"


def case_layouts(c):
    job = submit(c, "one")
    c.wait_done(job, 120)
    want = losses(c, job)
    print(f"one GPU: {speed(c, job):.1f} ms a step, loss {want[1]:.4f} -> {want[40]:.4f}", flush=True)
    # What another order of sums alone does: the same job on one GPU in micro-batches of another size.
    other = submit(c, "one-again", micro=8)
    c.wait_done(other, 90)
    noise = apart(losses(c, other), want)
    print(f"the same in micro-batches of 8: {show(noise)}", flush=True)
    for name, layout in (("tp2", {"tp": 2}), ("pp2", {"pp": 2}), ("dp2", {"dp": 2}), ("tp2-nccl", {"tp": 2, "peer": "false"}), ("dp2-nccl", {"dp": 2, "peer": "false"})):
        job = submit(c, name, **layout)
        try:
            c.wait_done(job, 90)
        except Failure as e:
            print(f"FAILED {name}: {e}", flush=True)
            c.failed += 1
            c.show_logs()
            c.ctl("cancel", str(job), "--now", check=False)
            continue
        got = losses(c, job)
        found = apart(got, want)
        ok = found[0] < EARLY_TOLERANCE and found[1] < max(TOLERANCE, TIMES_NOISE * noise[1])
        c.failed += not ok
        print(f"{'ok' if ok else 'FAILED'}  {name}: {speed(c, job):.1f} ms a step, loss {got[1]:.4f} -> {got[40]:.4f}, {show(found)}", flush=True)


STEPS = 120


def undisturbed(c):
    if not hasattr(c, "want"):
        job = submit(c, "undisturbed", dp=2, steps=STEPS, replica_every=10)
        c.wait_done(job, 120)
        c.want = {s: r["loss_hex"] for s, r in c.final(job).items()}
        print(f"undisturbed: {speed(c, job):.1f} ms a step", flush=True)
    return c.want


def disturbed(c, name, sig, rank, bound, peer="true"):
    want = undisturbed(c)
    job = submit(c, name, dp=2, steps=STEPS, replica_every=10, peer=peer)
    c.wait_step(job, 45, 60)
    pids = c.pids(job)
    before = c.step(job)
    t = time.time()
    os.kill(pids[rank], sig)
    seen = wait_for("a new step", lambda: next((r for r in c.rows(job) if r["epoch"] > 1 and r["step"] > before), None), 60, 0.01)
    again = sum(1 for r in c.rows(job) if r["epoch"] > 1 and r["step"] <= before)
    took = time.time() - t
    c.wait_done(job, 120)
    got = {s: r["loss_hex"] for s, r in c.final(job).items()}
    bad = [s for s in want if want[s] != got.get(s)]
    text = [e["text"] for e in c.events(job)["events"] if e["kind"] in ("recovered", "recovering", "fault")]
    text.append("first steps after it: " + ", ".join(f"{r['ms']:.0f} ms" for r in [r for r in c.rows(job) if r["epoch"] > 1][:3]))
    text += c.ctl("why", str(job)).stdout.splitlines()
    ok = not bad and took < bound
    c.failed += not ok
    print(f"{'ok' if ok else 'FAILED'}  {name} of rank {rank}: {took:.2f} s to step {seen['step']} (bound {bound} s), {again} steps done again, "
          f"{len(bad)} of {len(want)} losses differ", *text, sep="\n      ", flush=True)


def case_kill(c):
    disturbed(c, "kill", signal.SIGKILL, 1, 3)
    disturbed(c, "kill0", signal.SIGKILL, 0, 3)
    disturbed(c, "kill-nccl", signal.SIGKILL, 1, 3, "false")


def case_stop(c):
    disturbed(c, "stop", signal.SIGSTOP, 1, 3 + 3 + 3)
    disturbed(c, "stop-nccl", signal.SIGSTOP, 1, 3 + 3 + 3, "false")


def case_overflow(c):
    job = submit(c, "overflow", more="test: {overflow_step: 5, overflow_rank: 1, overflow_tensor: model.layers.3.mlp.down_proj.weight}\n", dp=2, steps=10)
    c.wait_done(job, 60)
    rows = c.final(job)
    skipped = [s for s, r in rows.items() if r["skipped"]]
    text = [e["text"] for e in c.events(job)["events"] if e["kind"] == "step_skipped"]
    ok = skipped == [5] and len(text) == 1 and "rank 1" in text[0] and "layers.3.mlp.down_proj" in text[0]
    c.failed += not ok
    print(f"{'ok' if ok else 'FAILED'}  overflow: skipped {skipped}, {text}", flush=True)


def case_scaling(c):
    """16,384 tokens a GPU and step; two GPUs by copies between them and by NCCL."""
    ms = {}
    for name, dp, peer in (("one", 1, "true"), ("copies", 2, "true"), ("nccl", 2, "false")):
        job = submit(c, f"llama-{name}", preset="llama-1b", seq=4096, dp=dp, steps=500, micro=4, batch=4 * dp, timeout=30000, peer=peer)
        c.wait_step(job, 25, 150)
        ms[name] = speed(c, job, 8)
        print(f"llama-1b {name}: {ms[name]:.1f} ms a step, {16384 * dp / ms[name] * 1e3:.0f} tokens/s, {ms['one'] / ms[name]:.3f} of one GPU's a GPU", flush=True)
        c.ctl("cancel", str(job), "--now", check=False)
        wait_for("its end", lambda: c.job(job)["state"].upper() in ("CANCELLED", "COMPLETED"), 60, 0.2)


CASES = {"layouts": case_layouts, "kill": case_kill, "stop": case_stop, "overflow": case_overflow, "scaling": case_scaling}


def own_text(c):
    """The guides, 70 kB of English, where FP8_TEXT names no other text."""
    docs = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs")
    path = c.home + "/text"
    with open(path, "w") as out:
        for name in sorted(n for n in os.listdir(docs) if n.endswith(".md")):
            with open(os.path.join(docs, name)) as h:
                out.write(h.read() + "\n")
    return path


def main():
    build, names = sys.argv[1], sys.argv[2:] or list(CASES)
    if not os.path.exists("/dev/nvidia1"):
        print("skipped: fewer than two GPUs")
        return 77
    with Cluster(build, nodes=1, devices=2, test_hooks=True, device="cuda") as c:
        c.failed = 0
        c.text = os.environ.get("FP8_TEXT") or own_text(c)
        for name in names:
            began = time.monotonic()
            try:
                CASES[name](c)
            except Exception:
                traceback.print_exc()
                c.failed += 1
                c.show_logs()
                for j in c.json("list").get("jobs", []):
                    c.ctl("cancel", str(j["id"]), "--now", check=False)
            print(f"-- {name}: {time.monotonic() - began:.1f} s", flush=True)
        return 1 if c.failed else 0


if __name__ == "__main__":
    sys.exit(main())
