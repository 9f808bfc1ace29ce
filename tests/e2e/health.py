#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`health.py BUILD [times]`: a site check that says critical drains its node and the job moves; a GPU off the bus, told by the kernel's log, evicts one; what the evidence is.

The machine's files are a test's (--health-root), /dev/kmsg among them as a pipe. The Xids of all rows of the table, and lines that only look like one, are in tests/unit/test_kernel_log. `times` prints how long it takes from a blow to the controller's event (docs/health.md).
"""
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")


def check(what, found, expected):
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")


class Nodes(Bare):
    """Each node has a machine of its own below nodes/NAME.root."""

    def start_worker(self, name, *extra):
        root = f"{self.home}/{name}.root"
        os.makedirs(root + "/dev", exist_ok=True)
        os.makedirs(root + "/checks", exist_ok=True)
        os.makedirs(root + "/proc/sys/kernel", exist_ok=True)
        self.pci(root)
        if not os.path.exists(root + "/dev/kmsg"):
            os.mkfifo(root + "/dev/kmsg")
        with open(root + "/proc/sys/kernel/osrelease", "w") as h:
            h.write("6.1.2\n" if name == "node-2" else "6.1.1\n")
        super().start_worker(name, "--health-root", root, "--health-checks", root + "/checks", "--health-interval", "200ms", *extra)

    @staticmethod
    def pci(root):
        """Two GPUs, each with a network device below the same switch."""
        for i in range(2):
            os.makedirs(f"{root}/sys/bus/pci/devices", exist_ok=True)
            os.makedirs(f"{root}/sys/class/infiniband/mlx5_{i}/ports/1", exist_ok=True)
            os.makedirs(f"{root}/proc/driver/nvidia/gpus/0000:{i}8:00.0", exist_ok=True)
            for kind, slot, address in (("gpu", 1, f"0000:{i}8:00.0"), ("nic", 2, f"0000:{i}9:00.0")):
                path = f"devices/pci0000:{i}5/0000:{i}5:01.0/0000:{i}6:00.0/0000:{i}7:0{slot}.0/{address}"
                os.makedirs(f"{root}/sys/{path}", exist_ok=True)
                with open(f"{root}/sys/{path}/numa_node", "w") as h:
                    h.write(f"{i}\n")
                link = f"{root}/sys/bus/pci/devices/{address}" if kind == "gpu" else f"{root}/sys/class/infiniband/mlx5_{i}/device"
                if not os.path.lexists(link):
                    os.symlink(f"../../../{path}", link)
            with open(f"{root}/proc/driver/nvidia/gpus/0000:{i}8:00.0/information", "w") as h:
                h.write(f"Model: \t NVIDIA X\nDevice Minor: \t {i}\n")
            for path in f"dev/nvidia{i}", f"sys/class/infiniband/mlx5_{i}/ports/1/state":
                with open(f"{root}/{path}", "w") as h:
                    h.write("4: ACTIVE\n")

    def site(self, name, code, text):
        path = f"{self.home}/{name}.root/checks/fabric"
        with open(path + ".new", "w") as h:
            h.write(f"#!/bin/sh\necho '{text} | figure=1'\nexit {code}\n")
        os.chmod(path + ".new", 0o755)
        os.rename(path + ".new", path)

    def kmsg(self, name, *lines):
        with open(f"{self.home}/{name}.root/dev/kmsg", "w") as h:
            h.write("".join(line + "\n" for line in lines))

    def port(self, name, up):
        path = f"{self.home}/{name}.root/sys/class/infiniband/mlx5_0/ports/1"
        os.makedirs(path, exist_ok=True)
        with open(path + "/new", "w") as h:
            h.write("4: ACTIVE\n" if up else "1: DOWN\n")
        os.rename(path + "/new", path + "/state")

    def node(self, name):
        return self.json("node", "get", name)

    def nodes_of(self, job):
        return {r["node"] for r in self.describe(job)["plan"]["ranks"] if r["state"] == "running"}


def measure(c, what, kind, blow, mend, times=10):
    took = []
    for i in range(times):
        after = c.json("events")["events"][-1]["id"]
        began = time.time()
        blow(i)
        event = wait_for(what, lambda: next((e for e in c.json("events", "--after", str(after))["events"] if e["kind"] == kind), None), 10, 0.02)
        took.append(event["unix_ms"] - began * 1e3)
        mend()
        time.sleep(1.3)  # the port's and the site's next look; the breaker's window
    took.sort()
    print(f"{what}: median {took[len(took) // 2]:.0f} ms, most {took[-1]:.0f} ms", flush=True)


def times():
    with Nodes(sys.argv[1], nodes=2, devices=2, controller=["--health-settle", "100ms", "--health-window", "1s"]) as c:
        os.chmod(c.home, 0o755)
        c.port("node-0", True)
        time.sleep(1.5)
        # Four: with the fifth repair the node would be on the RMA list.
        measure(c, "Xid 79 in the kernel's log, evicted", "node_evicted", lambda i: c.kmsg("node-0", f"3,{i + 1},1000,-;NVRM: Xid (PCI:0000:{i + 16:02x}:00): 79, pid=0, x"), lambda: c.ctl("node", "uncordon", "node-0"), 4)
        measure(c, "a port goes down, warned of", "node_unwell", lambda i: c.port("node-0", False), lambda: c.port("node-0", True))
        measure(c, "a site check fails, run every 0.2 s", "node_unwell", lambda i: c.site("node-0", 2, "no"), lambda: c.site("node-0", 0, "yes"))


def rails(c, job):
    """Each rank got the port below its device's switch; one that flaps is ridden out."""
    ranks = c.describe(job)["plan"]["ranks"]
    check("rails", [r["rail"] for r in ranks], [f"=mlx5_{r['device']}:1" for r in ranks])
    n = c.node(ranks[0]["node"])
    check("a device's place", (n["devices"][1]["path"], n["devices"][1]["numa"], n["nics"][1]["used_ports"]), ("pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:18:00.0", 1, [1]))
    if "0000:19:00.0  mlx5_1, rail 1" not in c.ctl("node", "describe", n["name"]).stdout:
        raise Failure("node describe: found no PCI tree")
    if "network ports by the plan: =mlx5_" not in c.ctl("logs", str(job), "--rank", "0").stdout:
        raise Failure("rank 0 was not told its rail")
    told = c.ctl("submit", JOB, *SMALL, "--plan", "--set", f"checkpoint.dir={c.home}/other").stdout
    if "=mlx5_1:1" not in told or "of 2 hops between nodes in data-parallel rings 2 stay on their rail" not in told:
        raise Failure(f"submit --plan: found\n{told}")
    epoch = c.describe(job)["epoch"]
    c.port(n["name"], False)
    wait_for("the other port to be taken for new ranks", lambda: [d["rail"] for d in c.node(n["name"])["devices"]] == ["=mlx5_1:1"] * 2, 10)
    c.port(n["name"], True)
    wait_for("the port to be used again", lambda: c.node(n["name"])["devices"][0]["rail"] == "=mlx5_0:1", 10)
    check("the flap's cost", (c.describe(job)["epoch"], c.node(n["name"])["duty"]), (epoch, "open"))
    print("ok  rails, and a port that flaps", flush=True)


def canary(c):
    """A node that nobody uses computes known answers; one that comes out wrong evicts it until somebody says otherwise."""
    c.start_worker("node-3", "--canary", "100ms")

    def said():
        return {k["subject"]: k["verdict"] for k in c.node("node-3")["checks"] if k["check"] == "canary"}

    wait_for("canaries of both devices", lambda: c.ctl("node", "get", "node-3", check=False).returncode == 0 and said() == {"device 0": "ok", "device 1": "ok"}, 30)
    with open(f"{c.home}/node-3.root/expect-wrong", "w"):
        pass
    wait_for("a wrong one to evict", lambda: c.node("node-3")["health"] == "evict", 30)
    n = c.node("node-3")
    if "canary device" not in n["health_reason"] or "expected 0000" not in n["health_reason"]:
        raise Failure(f"its reason: found {n['health_reason']!r}")
    os.unlink(f"{c.home}/node-3.root/expect-wrong")
    wait_for("canaries that are right again", lambda: set(said().values()) == {"ok"}, 30)
    check("it stays evicted", c.node("node-3")["health"], "evict")
    check("until it is uncordoned", c.json("node", "uncordon", "node-3")["health"], "ok")
    print("ok  canaries", flush=True)


def sums(c, bad):
    """Pairs of nodes sum as ranks do; the one with a wrong number in both of its pairs is evicted, the other pair's figure is good."""
    names = ["node-0", "node-1", "node-2"]
    c.ctl("node", "uncordon", bad)
    p = c.ctl("node", "test", "--pairwise", "--all-reduce", *names, "-o", "json", check=False)
    t = json.loads(p.stdout)
    check("sums: exit code, wrong nodes", (p.returncode, t["wrong_nodes"]), (1, [bad]))
    for f in t["pairs"]:
        hit = bad in (f["a"], f["b"])
        if f["wrong"] != hit or (hit and "wrong sums" not in f["error"]) or (not hit and not (f["gbs"] > 0 and f["latency_us"] > 0 and f["by"] == "sockets")):
            raise Failure(f"sums: found {f}")
    n = c.node(bad)
    check("health after wrong sums", n["health"], "evict")
    if "test all-reduce: with node-" not in n["health_reason"] or "wrong sums" not in n["health_reason"]:
        raise Failure(f"its reason: found {n['health_reason']!r}")
    other = c.node(({*names} - {bad}).pop())
    check("the others", (other["health"], [p["name"] for p in other["tests"][-1]["parts"]]), ("ok", ["all-reduce"] * 2))
    f = next(f for f in t["pairs"] if not f["wrong"])
    p = c.ctl("node", "test", "--pairwise", "--at-least", "1000000", *({*names} - {bad}), "-o", "json", check=False)
    check("more than there is", (p.returncode, [x["slow"] for x in json.loads(p.stdout)["pairs"]]), (1, [True]))
    print(f"ok  sums between pairs of nodes: {f['gbs']:.2f} GB/s, {f['latency_us']:.0f} us; wrong ones name {bad}; {t['ms'] / 1e3:.1f} s", flush=True)


def main():
    with Nodes(sys.argv[1], nodes=3, devices=2, controller=["--health-settle", "300ms", "--health-window", "1s"]) as c:
        os.chmod(c.home, 0o755)  # site checks run as nobody
        wait_for("all facts", lambda: all(n["fingerprint"] for n in c.json("node", "list")["nodes"]), 10)
        wait_for("all rails", lambda: all(d["rail"] for n in c.json("node", "list")["nodes"] for d in n["devices"]), 10)
        p = c.ctl("node", "diff", "-o", "json", check=False)
        check("node diff", (p.returncode, json.loads(p.stdout)["keys"]), (1, [{"key": "kernel", "values": [{"value": "6.1.1", "nodes": ["node-0", "node-1"]}, {"value": "6.1.2", "nodes": ["node-2"]}]}]))
        check("node diff of two that are alike", c.ctl("node", "diff", "node-0", "node-1").stdout, "2 nodes, made alike\n")
        job = c.submit(JOB, *SMALL, "--set", f"checkpoint.dir={c.home}/ckpt", "--set", "train.steps=100000", "--set", "checkpoint.every_steps=0")
        c.wait_step(job, 3)
        rails(c, job)
        first = c.nodes_of(job)
        bad = sorted(first)[0]
        spare = ({"node-0", "node-1", "node-2"} - first).pop()
        c.site(bad, 2, "switch says no")
        began = time.monotonic()
        wait_for("the job to move off it", lambda: c.nodes_of(job) == (first - {bad}) | {spare}, 20)
        print(f"ok  a site check that exits 2: its ranks moved in {time.monotonic() - began:.1f} s", flush=True)
        n = c.node(bad)
        check("duty, health", (n["duty"], n["health"]), ("draining", "drain"))
        check("its reason", n["health_reason"], "site fabric: switch says no")
        check("the check's word", [(k["verdict"], k["evidence"]) for k in n["checks"] if k["subject"] == "fabric"], [("drain", "switch says no")])
        c.site(bad, 0, "all is well")
        wait_for("the node to be open again", lambda: c.node(bad)["duty"] == "open", 10)
        # Nobody's line, a process's line, and noise; then the kernel's.
        gone = sorted(c.nodes_of(job))[0]
        xid = "NVRM: Xid (PCI:0000:3b:00): 79, pid=0, GPU has fallen off the bus."
        c.kmsg(gone, xid, f"14,8,1000,-;{xid}", f"6,9,1000,-;say {xid}", "4,10,1000,-;NVRM: Xid (PCI:0000:3b:00): 79999999999", "\x00\xff" * 3000, f"6,11,1000,-;{xid[:22]}", " DEVICE=+pci")
        time.sleep(0.3)
        check("findings of noise", c.node(gone)["findings"], [])
        began = time.monotonic()
        c.kmsg(gone, f"3,12,1000,-;{xid}")
        wait_for("the node to be evicted", lambda: c.node(gone)["health"] == "evict", 10, 0.01)
        took = time.monotonic() - began
        wait_for("the job to go on elsewhere", lambda: gone not in c.nodes_of(job) and len(c.nodes_of(job)) == 2, 20)
        print(f"ok  Xid 79 in the kernel's log: evicted {took * 1e3:.0f} ms after the line, its ranks run elsewhere after {time.monotonic() - began:.1f} s", flush=True)
        n = c.node(gone)
        check("what was found", [(f["check"], f["code"], f["subject"], f["action"]) for f in n["findings"]], [("xid", 79, "0000:3b:00", "evict")])
        text = c.ctl("node", "describe", gone).stdout
        for word in ("xid 79", "GPU has fallen off the bus", "0000:3b:00", "evict"):
            if word not in text:
                raise Failure(f"node describe: found no '{word}' in\n{text}")
        why = c.ctl("why", str(job)).stdout
        if "Xid 79" not in why:
            raise Failure(f"why: found no Xid 79 in\n{why}")
        check("node uncordon", c.json("node", "uncordon", gone)["health"], "ok")
        c.ctl("cancel", str(job), "--now")
        # Its own test: passed; then with other digests expected.
        t = c.json("node", "test", gone)
        check("parts of a test", sorted({p["name"] for p in t["parts"]}), ["clock", "copy", "disk", "gemm", "gemm-fp8", "memory"])
        check("its word", (t["passed"], {p["verdict"] for p in t["parts"]} <= {"ok", "warn"}), (True, True))
        print(f"ok  node test: {len(t['parts'])} parts in {t['ms'] / 1e3:.1f} s", flush=True)
        with open(f"{c.home}/{gone}.root/expect-wrong", "w"):
            pass
        p = c.ctl("node", "test", gone, check=False)
        if p.returncode != 1 or "not passed" not in p.stdout:
            raise Failure(f"a test with a wrong digest: found exit {p.returncode}, {p.stdout}{p.stderr}, expected 1")
        n = c.node(gone)
        check("health after wrong arithmetic", n["health"], "evict")
        if "digest 86fa636ae3063666b699703d58895dfd, expected 0" not in n["health_reason"]:
            raise Failure(f"its reason: found {n['health_reason']!r}")
        sums(c, gone)
        canary(c)


if __name__ == "__main__":
    try:
        times() if sys.argv[2:] == ["times"] else main()
    except Failure as e:
        sys.exit(f"health: {e}")
