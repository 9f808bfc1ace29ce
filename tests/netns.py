# SPDX-License-Identifier: Apache-2.0
"""A cluster whose nodes are network namespaces, so that the network can be the fault.

    fp8ctl-PID-ctl      fp8ctl-PID-0        fp8ctl-PID-1
    +----------+        +----------+        +----------+
    | fp8d     |        | worker   |        | worker   |
    | 10.77.0.1|        | ranks    |        | ranks    |        ...
    |   eth0   |        | 10.77.0.2|        | 10.77.0.3|
    +----+-----+        +----+-----+        +----+-----+
         |                   |                   |
    =====+===================+===================+=====  bridge f8-PID, in a namespace of its own

Workers talk to the controller by mTLS over TCP, ranks to ranks by TCP; fp8ctl talks to the controller over its Unix socket, which no network fault touches.
Needs root, ip, nsenter and nft.
"""
import contextlib
import os
import shutil
import subprocess

from bare import Bare

PORT = 7411


def missing():
    """Why this machine cannot; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [p for p in ("ip", "nsenter", "nft") if not shutil.which(p, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")]
    return f"no {', '.join(absent)}" if absent else None


def sh(*argv, check=True, text=None):
    return subprocess.run(argv, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=check, env=dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"))


class NetCluster(Bare):
    def __init__(self, build, nodes=6, devices=2, controller=(), worker=()):
        super().__init__(build, nodes=nodes, devices=devices, controller=controller, worker=worker, address=f"ipv4:10.77.0.1:{PORT}")
        self.names = ["fp8d"] + [f"node-{i}" for i in range(nodes)]
        self.switch = f"fp8ctl-{os.getpid()}-sw"

    def space(self, name):
        return f"fp8ctl-{os.getpid()}-{name}"

    def ip_of(self, name):
        return f"10.77.0.{1 + self.names.index(name)}"

    def rack_of(self, name):
        """Two nodes each."""
        return f"rack-{(self.names.index(name) - 1) // 2}"

    def port(self, name):
        """Its end of the cable in the switch."""
        return f"p{self.names.index(name)}"

    def wire(self):
        sh("ip", "netns", "add", self.switch)
        sh("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", self.switch, "link", "set", "br0", "up")
        for name in self.names:
            ns, port = self.space(name), self.port(name)
            sh("ip", "netns", "add", ns)
            sh("ip", "-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns)
            sh("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")
            sh("ip", "-n", ns, "addr", "add", f"{self.ip_of(name)}/24", "dev", "eth0")
            sh("ip", "-n", ns, "link", "set", "eth0", "up")
            sh("ip", "-n", ns, "link", "set", "lo", "up")

    def up(self):
        self.wire()
        certs = self.home + "/certs"
        self.ctl("admin", "certs", "--out", certs, "--ip", "10.77.0.1", *[x for n in self.names[1:] for x in ("--node", n)])
        self.controller_args += ["--listen", self.address, "--tls-ca", certs + "/ca.pem", "--tls-cert", certs + "/controller.pem", "--tls-key", certs + "/controller.key"]
        super().up()

    def spawn(self, name, argv, log):
        return super().spawn(name, ["nsenter", f"--net=/run/netns/{self.space(name)}", *argv], log)

    def start_worker(self, name, *extra):
        certs = self.home + "/certs"
        return super().start_worker(name, "--host", self.ip_of(name), "--rack", self.rack_of(name), "--tls-ca", certs + "/ca.pem", "--tls-cert", f"{certs}/{name}.pem", "--tls-key", f"{certs}/{name}.key", *extra)

    # Faults of the network. All are taken back by heal().
    def link(self, name, up):
        """The node's port of the switch."""
        sh("ip", "-n", self.switch, "link", "set", self.port(name), "up" if up else "down")

    def drop(self, name, hook, what=""):
        """What the node sends ("output") or is sent ("input") is thrown away: all of it, or what `what` says in nft's words."""
        own = "iifname lo accept" if hook == "input" else "oifname lo accept"
        rules = f"table inet fault {{\nchain c {{\ntype filter hook {hook} priority 0; policy accept;\n{own}\n{what} drop\n}}\n}}\n"
        sh("ip", "netns", "exec", self.space(name), "nft", "-f", "-", text=rules)

    def cut(self, name, other):
        """Nothing passes between the two, in either direction; all others reach both."""
        self.drop(name, "output", f"ip daddr {self.ip_of(other)}")

    def heal(self):
        for name in self.names:
            sh("ip", "netns", "exec", self.space(name), "nft", "delete", "table", "inet", "fault", check=False)
            self.link(name, True)

    def __exit__(self, kind, value, trace):
        try:
            super().__exit__(kind, value, trace)
        finally:
            for ns in [self.switch] + [self.space(n) for n in self.names]:
                with contextlib.suppress(OSError):
                    sh("ip", "netns", "del", ns, check=False)
