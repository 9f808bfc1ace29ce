# SPDX-License-Identifier: Apache-2.0
"""Daemons without a keeper, each started, signalled and started again by the test itself. Driven like a Cluster."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile

from cluster import Cluster, Failure, wait_for


def gone(pid):
    """Dead, whether it was reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as h:
            return h.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Bare(Cluster):
    """home: the cluster's folder. launcher: words before each daemon's own, {name: [word...]}; env: {name: {variable: value}}."""

    def __init__(self, build, nodes=1, devices=2, controller=(), worker=(), address=None, home=None):
        self.build = os.path.abspath(build)
        self.home = home or tempfile.mkdtemp(prefix="fp8b-")
        self.nodes, self.devices, self.keep = nodes, devices, False
        self.controller_args, self.worker_args = list(controller), list(worker)
        self.address = address or f"unix:{self.home}/fp8d.sock"
        self.bin = None  # where the workers' programs are, if not in the build
        self.started = {}
        self.env = {}

    def up(self):
        self.start_controller()
        for i in range(self.nodes):
            self.start_worker(f"node-{i}")
        self.wait_ready(self.nodes)

    def __enter__(self):
        try:
            self.up()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def wait_ready(self, n):
        wait_for(f"{n} ready nodes", lambda: [x["state"] for x in self.json("node", "list")["nodes"]].count("ready") == n, 30)

    def spawn(self, name, argv, log):
        with open(log, "ab") as h:
            self.started[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=h, stderr=h, env=dict(os.environ, **self.env.get(name, {})))
        return self.started[name]

    def launch_controller(self):
        self.spawn("fp8d", [self.build + "/fp8d", "--socket", self.home + "/fp8d.sock", "--state", self.home, *self.controller_args], self.home + "/fp8d.log")

    def start_controller(self):
        self.launch_controller()
        wait_for("the controller", lambda: self.ctl("node", "list", check=False).returncode == 0, 30)

    def start_worker(self, name, *extra):
        d = f"{self.home}/nodes/{name}"
        os.makedirs(d, exist_ok=True)
        return self.spawn(name, [(self.bin or self.build) + "/fp8-worker", "--name", name, "--dir", d, "--controller", self.address, "--devices", str(self.devices),
                                 *self.worker_args, *extra], d + "/worker.log")

    def daemon_pid(self, name):
        return self.started[name].pid

    def spawner_pid(self, name):
        with open(f"{self.home}/nodes/{name}/spawner.pid") as h:
            return int(h.read().split()[0])

    def stop(self, name, sig=signal.SIGTERM, seconds=40):
        """Its exit code."""
        p = self.started.pop(name)
        p.send_signal(sig)
        try:
            return p.wait(seconds)
        except subprocess.TimeoutExpired:
            p.kill()
            raise Failure(f"{name} did not end within {seconds} s of signal {sig}") from None

    def kill_node(self, name):
        """Power off: worker, spawner and with it all of its ranks."""
        spawner = self.spawner_pid(name)
        p = self.started.pop(name)
        p.kill()
        os.kill(spawner, signal.SIGKILL)
        p.wait()
        wait_for("the spawner's end", lambda: gone(spawner), 10, 0.002)

    def __exit__(self, kind, value, trace):
        if kind is not None:
            self.show_logs()
        for name in list(self.started):
            if name == "fp8d":
                continue
            try:
                spawner = self.spawner_pid(name)
            except (OSError, ValueError, IndexError):
                spawner = 0
            p = self.started.pop(name)
            p.kill()
            p.wait()
            if spawner:
                try:
                    os.kill(spawner, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        if "fp8d" in self.started:
            p = self.started.pop("fp8d")
            p.kill()
            p.wait()
        if not self.keep and kind is None:
            shutil.rmtree(self.home, ignore_errors=True)
