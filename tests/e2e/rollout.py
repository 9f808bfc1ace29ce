#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`rollout.py BUILD`: a change walks over four nodes share by share, made by each worker's program, while a job trains on; then one whose program fails on the second node stops there, and the others stay as they are. When it goes on the controller is killed while a node is tested.

The change is a line of the node's /etc/fp8ctl/facts (below --health-root), which the program writes.  Beside the worker lies a test of nodes that passes at once, or when it is let: the true one, which computes for seconds, has its own tests.
"""
import os
import shutil
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ENDLESS, ROOT, SMALL, Failure, paced, run_script, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")
HOOK = """#!/bin/sh
# ROLLOUT NODE FACT VALUE
echo "$@" >>"{home}/hooks"
if [ -e "{home}/$2.bad" ]; then echo "first words"; echo "no space left"; exit 3; fi
echo "${{3#site.}}=$4" >"{home}/$2.root/etc/fp8ctl/facts"
"""

TEST = """#!/bin/sh
while [ -e "{home}/hold" ]; do sleep 0.02; done
echo '{{"name": "gemm", "device": 0, "verdict": "ok", "unit": "", "text": "", "value": 1}}'
"""


def check(what, found, expected):
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")
    print(f"ok  {what}", flush=True)


def program(path, text):
    with open(path, "w") as h:
        h.write(text)
    os.chmod(path, 0o755)


class Nodes(Bare):
    def up(self):
        """Programs of the build, but for one."""
        self.bin = self.home + "/bin"
        os.mkdir(self.bin)
        for name in "fp8-worker", "fp8-rank":
            shutil.copy2(f"{self.build}/{name}", self.bin)
        program(self.bin + "/fp8-nodetest", TEST.format(home=self.home))
        program(self.home + "/hook", HOOK.format(home=self.home))
        super().up()

    def start_worker(self, name, *extra):
        root = f"{self.home}/{name}.root"
        os.makedirs(root + "/etc/fp8ctl", exist_ok=True)
        if not os.path.exists(root + "/etc/fp8ctl/facts"):
            with open(root + "/etc/fp8ctl/facts", "w") as h:
                h.write("setting=1\n")
        super().start_worker(name, "--health-root", root, "--rollout-hook", self.home + "/hook", *extra)

    def rollout(self):
        return self.json("rollout", "status")

    def states(self):
        return {k["name"]: k["state"] for k in self.rollout()["nodes"]}

    def setting(self, name):
        return {f["key"]: f["value"] for f in self.json("node", "get", name)["facts"]}.get("site.setting")

    def settings(self):
        return [self.setting(f"node-{i}") for i in range(self.nodes)]

    def wait(self, *states):
        return wait_for(f"a rollout that is {' or '.join(states)}", lambda: (r := self.rollout())["state"] in states and r, 60, 0.02)

    def told(self, kind):
        return [e for e in self.json("events")["events"] if e["kind"] == kind]


def main():
    with Nodes(sys.argv[1], nodes=4, devices=2, controller=["--allow-test-hooks"]) as c:
        wait_for("facts of all nodes", lambda: c.settings() == ["1"] * 4, 30, 0.02)
        job = c.submit(JOB, *SMALL, *paced(20), *ENDLESS, "--set", f"checkpoint.dir={c.home}/ckpt")
        c.wait_step(job, 1)
        c.ctl("rollout", "start", "--name", "setting-2", "--fact", "site.setting=2", "--stages", "25,50,100", "--soak", "100ms")
        r = c.wait("done", "stopped", "aborted")
        check("the first", (r["state"], r["reason"], set(c.states().values()), c.settings()), ("done", None, {"done"}, ["2"] * 4))
        check("one stage after the other", [e["text"].rsplit(":", 1)[1] for e in c.told("rollout_stage")], [" on to 50%, 2 nodes", " on to 100%, 4 nodes"])
        with open(c.home + "/hooks") as h:
            check("each node once", sorted(h.read().splitlines()), [f"setting-2 node-{i} site.setting 2" for i in range(4)])
        with open(c.home + "/node-1.bad", "w"):
            pass
        c.ctl("rollout", "start", "--fact", "site.setting=3", "--soak", "0")
        r = c.wait("done", "stopped", "aborted")
        check("the second", (r["state"], c.states(), c.settings()), ("stopped", {"node-0": "done", "node-1": "failed", "node-2": "pending", "node-3": "pending"}, ["3", "2", "2", "2"]))
        if not r["reason"].endswith("exit code 3: no space left"):
            raise Failure(f"its verdict: found {r['reason']!r}")
        check("nodes", [c.json("node", "get", f"node-{i}")["duty"] for i in range(4)], ["open", "draining", "open", "open"])
        os.unlink(c.home + "/node-1.bad")
        with open(c.home + "/hold", "w"):
            pass
        c.ctl("rollout", "resume", "--reason", "there is space again")
        wait_for("node-1 to be tested", lambda: c.states()["node-1"] == "testing", 60, 0.02)
        c.stop("fp8d", signal.SIGKILL)
        c.start_controller()
        c.wait_ready(4)
        check("after the controller's death", c.states()["node-1"], "testing")
        os.unlink(c.home + "/hold")
        r = c.wait("done", "stopped", "aborted")
        check("resumed", (r["state"], c.settings()), ("done", ["3"] * 4))
        c.wait_step(job, c.step(job) + 1)
        print("ok  the job trains on", flush=True)


if __name__ == "__main__":
    run_script("rollout", main)
