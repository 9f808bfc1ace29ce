#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`soak.py BUILD [--minutes N] [--seed S] [--pace F] [-o json]`: random faults on a live cluster for as long as it is told, with memory, descriptors and threads of every process watched.

One job of four ranks trains from the beginning to the end; short ones of several kinds come and go beside it.  Ranks are killed and stopped, workers, spawners and the controller killed and
started again as a supervisor would, workers begin anew (SIGHUP), nodes drained and opened, jobs saved, cancelled, requeued, scaled and preempted.  In the end: every job that was accepted came
to its end, the losses and digests of all that kept their layout are those of undisturbed runs, no device is taken, no rank is left, and nothing grew beyond the bounds of growth.py.
--pace 3 makes three times as many seconds of everything, for a machine that has other work.  Progress goes to stderr, the table (or rows) to stdout.
"""
import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import growth  # noqa: E402
from bare import Bare, gone  # noqa: E402
from cluster import ROOT, SLOWDOWN, Failure, compare, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/fault/job.yaml")
ENDS = ("COMPLETED", "FAILED", "CANCELLED")
NODES, AT_ONCE, KEEP_JOBS = 4, 3, 60
WARM_S = 40  # of a process's life, before it counts
END_S = 300  # for what still runs when the last fault was made

SMALL = {"train.global_batch": 2, "train.micro_batch": 1, "data.seq_len": 32, "optimizer.warmup_steps": 2, "recovery.max_restarts": -1, "recovery.same_cause_limit": 1000,
         "recovery.collective_timeout_ms": int(8000 * SLOWDOWN), "recovery.drills": "true", "checkpoint.keep_last": 2}
PAIR = {"parallel.tp": 1, "parallel.pp": 1, "parallel.dp": 2, "train.steps": 60, "checkpoint.every_steps": 10}
LONG = {"parallel.tp": 2, "parallel.pp": 1, "parallel.dp": 2, "train.steps": 1000000, "checkpoint.every_steps": 40, "checkpoint.local_every": 20, "checkpoint.at_end": "false",
        "metrics.max_bytes": 1 << 40}
# name -> settings, whose undisturbed run it is compared with (None: its layout may change), how often.
KINDS = {
    "pair": (PAIR, "pair", 4),
    "stages": ({**PAIR, "parallel.tp": 2, "parallel.pp": 2, "parallel.dp": 1, "train.steps": 40, "checkpoint.every_steps": 0}, "stages", 2),
    "standby": ({**PAIR, "recovery.standby": 1}, "pair", 2),
    "overflow": ({**PAIR, "test.overflow_step": 13, "test.overflow_rank": 1, "test.overflow_tensor": "model.layers.1.mlp.up_proj.weight"}, "overflow", 2),
    "urgent": ({**PAIR, "priority": 10, "train.steps": 20, "parallel.tp": 2, "parallel.dp": 2}, "urgent", 1),
    "elastic": ({**PAIR, "recovery.min_dp": 1, "recovery.grow_delay_ms": 1000}, None, 2),
}


class Soak(Bare):
    def __init__(self, args):
        super().__init__(args.build, nodes=NODES, devices=2, controller=["--lease-ttl", "8s", "--allow-test-hooks", "--keep-jobs", str(KEEP_JOBS)])
        self.rng, self.pace, self.every = random.Random(args.seed), args.pace, args.sample
        self.samples = growth.Samples(min(WARM_S, args.minutes * 6))
        self.count, self.again = collections.Counter(), collections.Counter()
        self.disk, self.jobs, self.names, self.want = [], {}, 0, {}
        self.cancelled, self.later, self.ended, self.long = set(), [], collections.Counter(), 0
        self.compared = 0

    # -------------------------------------------------------------- asking a controller that may just be gone
    def ask(self, *args):
        """Its output as JSON, whenever it answers; None: refused."""
        end = time.monotonic() + 60 * SLOWDOWN
        while True:
            self.supervise()
            p = self.ctl(*args, "-o", "json", check=False)
            if p.returncode == 0:
                return json.loads(p.stdout) if p.stdout.strip() else {}
            if p.returncode not in (5, 6):
                return None
            if time.monotonic() > end:
                raise Failure(f"fp8ctl {' '.join(args)}: {p.stderr.strip()}, for a minute")
            time.sleep(0.1)

    def supervise(self):
        """What has ended is started again."""
        for name, p in list(self.started.items()):
            if p.poll() is not None:
                self.start(name)

    def start(self, name):
        self.again[name] += 1
        if name == "fp8d":
            self.launch_controller()
        else:
            self.start_worker(name)

    # -------------------------------------------------------------- jobs
    def begin(self, kind, settings):
        self.names += 1
        name = f"{kind}-{self.names}"
        sets = {**SMALL, **settings, "checkpoint.dir": f"{self.home}/ckpt/{name}"}
        args = [x for k, v in sets.items() for x in ("--set", f"{k}={v}")]
        found = self.ask("submit", JOB, "--name", name, "--skip-preflight", *args)
        if found is None:
            raise Failure(f"{name} was refused: {self.ctl('submit', JOB, '--name', name, '--skip-preflight', *args, check=False).stderr}")
        return found["id"] if "id" in found else found["job"]["id"], name

    def reference(self, kind, settings):
        job, _ = self.begin("calm-" + kind, settings)
        self.wait_done(job)
        return self.final(job)

    def submit_some(self):
        kind = self.rng.choices(list(KINDS), [k[2] for k in KINDS.values()])[0]
        job, name = self.begin(kind, {**KINDS[kind][0], "test.slow_ms": int(60 * self.pace)})
        self.jobs[job] = (kind, name)

    def look(self):
        """Jobs that ended are compared and their checkpoints removed."""
        for j in (self.ask("list", "--all") or {"jobs": []})["jobs"]:
            if j["id"] == self.long and j["state"] in ENDS:
                raise Failure(f"the long job: found {j['state']} ({j['failure'] or j['reason']})")
            if j["id"] not in self.jobs or j["state"] not in ENDS:
                continue
            kind, name = self.jobs.pop(j["id"])
            self.ended[j["state"]] += 1
            if j["state"] == "FAILED" or (j["state"] == "CANCELLED" and j["id"] not in self.cancelled):
                raise Failure(f"{name} (job {j['id']}): found {j['state']} ({j['failure'] or j['reason']}), expected COMPLETED")
            if j["state"] == "COMPLETED" and KINDS[kind][1]:
                compare(f"{name} (job {j['id']})", self.want[KINDS[kind][1]], self.final(j["id"]))
                self.compared += 1
            subprocess.run(["rm", "-rf", f"{self.home}/ckpt/{name}"], check=True)

    # -------------------------------------------------------------- faults
    def ranks(self):
        """[(job, rank, pid)] of all that live."""
        job = self.rng.choice([self.long, *self.jobs])
        d = self.ask("describe", str(job))
        plan = d and (d.get("plan") or d["job"]["plan"])
        return [(job, r["rank"], r["pid"]) for r in plan["ranks"] if r["pid"]] if plan else []

    def blow_rank(self, sig):
        ranks = self.ranks()
        if ranks:
            try:
                os.kill(self.rng.choice(ranks)[2], sig)
            except ProcessLookupError:
                pass

    def blow_drill(self):
        ranks = self.ranks()
        if ranks:
            job, rank, _ = self.rng.choice(ranks)
            self.ctl("inject", str(job), "--rank", str(rank), "--signal", self.rng.choice(("KILL", "TERM")), check=False)

    def blow_daemon(self, name, sig):
        self.started[name].send_signal(sig)
        if sig == signal.SIGHUP:
            self.again[name] += 1
        else:
            self.started[name].wait(60)
            time.sleep(self.rng.choice((0, 0, 0.3)))
            self.supervise()

    def blow_spawner(self, name):
        """With it go the node's ranks; its worker begins anew."""
        try:
            os.kill(self.spawner_pid(name), signal.SIGKILL)
            self.again[name] += 1
        except (ProcessLookupError, OSError, ValueError, IndexError):
            pass

    def blow_drain(self, name):
        self.ask("node", "drain", name)
        self.later.append((time.monotonic() + self.rng.uniform(3, 20) * self.pace, lambda: self.ask("node", "uncordon", name)))

    def on_short(self, *args):
        if self.jobs:
            job = self.rng.choice(list(self.jobs))
            if args[0] == "cancel":
                self.cancelled.add(job)
            self.ask(args[0], str(job), *args[1:])

    def blow_scale(self):
        elastic = [job for job, (kind, _) in self.jobs.items() if kind == "elastic"]
        if elastic:
            self.ask("scale", str(self.rng.choice(elastic)), "--dp", self.rng.choice("12"))

    def ask_about(self):
        job = str(self.rng.choice([self.long, *self.jobs]))
        for what in self.rng.sample((("why", job), ("goodput", job), ("events", job), ("diagnose", job), ("ckpt", "ls", job), ("node", "describe", "node-1"), ("list", "--all")), 3):
            self.ask(*what)

    def fault(self):
        node = f"node-{self.rng.randrange(NODES)}"
        deeds = {
            "rank killed": (6, lambda: self.blow_rank(signal.SIGKILL)), "rank stopped": (1, lambda: self.blow_rank(signal.SIGSTOP)), "drill": (2, self.blow_drill),
            "worker killed": (3, lambda: self.blow_daemon(node, signal.SIGKILL)), "worker anew": (3, lambda: self.blow_daemon(node, signal.SIGHUP)),
            "spawner killed": (2, lambda: self.blow_spawner(node)), "controller killed": (1, lambda: self.blow_daemon("fp8d", signal.SIGKILL)),
            "controller restarted": (1, lambda: self.blow_daemon("fp8d", signal.SIGTERM)), "drain": (2, lambda: self.blow_drain(node)), "save": (3, lambda: self.ask("save", str(self.long))),
            "cancel": (1, lambda: self.on_short("cancel")), "cancel now": (1, lambda: self.on_short("cancel", "--now")), "requeue": (1, lambda: self.on_short("requeue")),
            "scale": (2, self.blow_scale), "questions": (3, self.ask_about),
        }
        what = self.rng.choices(list(deeds), [w for w, _ in deeds.values()])[0]
        self.count[what] += 1
        deeds[what][1]()

    # -------------------------------------------------------------- watching
    def sample(self, t):
        for name, p in self.started.items():
            kind = "fp8d" if name == "fp8d" else "worker"
            self.samples.add(kind, (name, p.pid, self.again[name]), t, growth.of_process(p.pid))
            if kind == "worker":
                try:
                    pid = self.spawner_pid(name)
                except (OSError, ValueError, IndexError):
                    continue
                self.samples.add("spawner", pid, t, growth.of_process(pid))
        d = self.ask("describe", str(self.long))
        plan = d and (d.get("plan") or d["job"]["plan"])
        for r in plan["ranks"] if plan else []:
            if r["pid"]:
                self.samples.add("rank", r["pid"], t, growth.of_process(r["pid"]))
        logs = sum(os.path.getsize(f"{self.home}/{f}") for f in ["fp8d.log", *[f"nodes/node-{i}/worker.log" for i in range(NODES)]]) // 1024
        store = sum(os.path.getsize(f"{self.home}/{f}") for f in os.listdir(self.home) if f.startswith("fp8d.db")) // 1024
        self.disk.append((t, {"store_kib": store, "logs_kib": logs, "nodes_kib": growth.size_kib(self.home + "/nodes"), "checkpoints_kib": growth.size_kib(self.home + "/ckpt"),
                              "jobs": self.names, "faults": sum(self.count.values())}))

    def run(self, seconds):
        began = time.monotonic()
        fault_at = sample_at = submit_at = said = began
        while (now := time.monotonic()) < began + seconds:
            self.supervise()
            for item in [x for x in self.later if x[0] <= now]:
                self.later.remove(item)
                item[1]()
            if now >= sample_at:
                self.sample(now - began)
                sample_at = now + self.every
            if now >= fault_at:
                self.fault()
                fault_at = time.monotonic() + self.rng.uniform(1, 6) * self.pace
            if now >= submit_at:
                self.look()
                if len(self.jobs) < AT_ONCE:
                    self.submit_some()
                submit_at = time.monotonic() + 1.5 * self.pace
            if now >= said + 60:
                said = now
                print(f"{(now - began) / 60:.0f} min: {sum(self.count.values())} faults, {self.names} jobs, {dict(self.ended)}, {self.compared} bit for bit; {self.disk[-1][1]}", file=sys.stderr, flush=True)
            time.sleep(0.1)

    # -------------------------------------------------------------- the end
    def finish(self):
        """All that is under way ends, and nothing is left."""
        for i in range(NODES):
            self.ask("node", "uncordon", f"node-{i}")

        def over():
            self.supervise()
            self.look()
            return not self.jobs
        wait_for("the end of the short jobs", over, END_S, 0.5)
        self.wait_ready(NODES)
        got = self.final(self.long)
        self.ctl("cancel", str(self.long), "--now")
        self.wait_done(self.long, 60, "CANCELLED")
        wait_for("all devices to be free", lambda: not [d for n in self.json("node", "list")["nodes"] for d in n["devices"] if d["job_id"]], 60, 0.3)
        wait_for("no rank to be left", lambda: not self.rank_processes(), 30, 0.3)
        return got

    def rank_processes(self):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as h, open(f"/proc/{pid}/stat") as s:
                    parent = int(s.read().rsplit(")", 1)[1].split()[1])
                    if "fp8-rank" in h.read() and parent in [self.spawner_pid(f"node-{i}") for i in range(NODES)] and not gone(int(pid)):
                        found.append(int(pid))
            except (OSError, ValueError, IndexError):
                pass
        return found

    def compare_long(self, got):
        last = max(got)
        calm, _ = self.begin("calm-long", {**LONG, "checkpoint.every_steps": 0, "checkpoint.local_every": 0})
        self.wait_step(calm, last, 120 + last)
        self.ctl("cancel", str(calm), "--now")
        compare("the long job", {s: r for s, r in self.final(calm).items() if s <= last}, got)
        return last


def disk_rows(disk, faults):
    """The second half against the first: by then as many jobs were kept as ever are."""
    rows = []
    for what in ("store_kib", "logs_kib", "nodes_kib", "checkpoints_kib"):
        half = [v[what] for t, v in disk if t >= disk[-1][0] / 2]
        bound = {"store_kib": growth.STORE_BOUND_KIB, "logs_kib": growth.LOG_BOUND_KIB_PER_FAULT * max(1, faults)}.get(what)
        grown = half[-1] - half[0]
        rows.append({"kind": "disk", "what": what, "lives": 1, "samples": len(disk), "median": sorted(half)[len(half) // 2], "max": max(half), "within": grown, "over": None, "bound": bound,
                     "ok": bound is None or grown <= bound})
    return rows


def commit():
    p = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return p.stdout.strip() or "unknown"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("build")
    a.add_argument("--minutes", type=float, default=10)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--pace", type=float, default=1)
    a.add_argument("--sample", type=float, default=10, help="seconds from one sample to the next")
    a.add_argument("-o", dest="output", choices=["table", "json"], default="table")
    args = a.parse_args()
    at = commit()
    print(f"soak: commit {at}, seed {args.seed}, {args.minutes:g} minutes, pace {args.pace:g}", file=sys.stderr, flush=True)
    with Soak(args) as c:
        for kind, (settings, same, _) in KINDS.items():
            if same == kind:
                c.want[kind] = c.reference(kind, settings)
        c.long, _ = c.begin("long", {**LONG, "test.slow_ms": int(150 * args.pace)})
        c.run(args.minutes * 60)
        got = c.finish()
        steps = c.compare_long(got)
    faults = sum(c.count.values())
    rows = c.samples.rows() + disk_rows(c.disk, faults)
    bad = [r for r in rows if not r["ok"]]
    if args.output == "json":
        print(json.dumps({"commit": at, "seed": args.seed, "minutes": args.minutes, "faults": dict(c.count), "jobs": c.names, "ended": dict(c.ended), "compared": c.compared, "long_steps": steps, "rows": rows}))
    else:
        columns = ("kind", "what", "lives", "samples", "median", "max", "within", "over", "bound")
        print(f"commit {at}, seed {args.seed}, {args.minutes:g} minutes: {faults} faults {dict(c.count)}")
        print("  ".join(f"{x:>15}" for x in columns))
        for r in rows:
            print("  ".join(f"{'-' if r[x] is None else r[x]:>15}" for x in columns) + ("" if r["ok"] else "  GROWS"))
    for r in bad:
        print(f"soak: {r['what']} of {r['kind']} grew by {r['within']} within a life and by {r['over']} over {r['lives']} lives, expected at most {r['bound']}", file=sys.stderr)
    if not bad:
        print(f"ok  {faults} faults in {args.minutes:g} minutes (seed {args.seed}, commit {at}): {c.names} jobs ended {dict(c.ended)}, {c.compared} of them and {steps} steps of the long one "
              f"equal bit for bit; memory, descriptors and threads flat", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as e:
        print(f"soak: {e}", file=sys.stderr)
        sys.exit(1)
