#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`tls.py BUILD`: a cluster over mTLS from `fp8ctl admin certs` on: a job runs over it, and everyone who is not who they say is refused."""
import os
import shutil
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, paced, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")


# Users alice and bob have no account here: their ranks run as nobody, who must reach the job's files.
def open_to_all(c):
    os.chmod(c.home, 0o755)
    for d in ("ckpt", "ckpt2"):
        os.mkdir(f"{c.home}/{d}")
        os.chmod(f"{c.home}/{d}", 0o777)
    shutil.copy(os.path.join(ROOT, "README.md"), c.home + "/text")
    os.chmod(c.home + "/text", 0o644)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def files(certs, name, ca=None):
    return ["--tls-ca", (ca or certs) + "/ca.pem", "--tls-cert", f"{certs}/{name}.pem", "--tls-key", f"{certs}/{name}.key"]


class Tls(Bare):
    def __init__(self, build):
        super().__init__(build, nodes=0)
        self.address = f"ipv4:127.0.0.1:{free_port()}"
        self.certs = self.home + "/certs"

    def up(self):
        self.ctl("admin", "certs", "--out", self.certs, "--ip", "127.0.0.1", "--node", "node-0", "--node", "node-1", "--user", "alice", "--user", "bob")
        self.controller_args = ["--allow-test-hooks", "--listen", self.address, *files(self.certs, "controller")]
        open_to_all(self)
        self.start_controller()

    def worker(self, name, cert, certs=None, ca=None):
        return self.start_worker(name, *files(certs or self.certs, cert, ca))

    def as_(self, who, *args, certs=None, ca=None, check=True, address=None):
        return self.ctl("--controller", address or self.address, *files(certs or self.certs, who, ca), *args, check=check)

    def log_of(self, name):
        with open(f"{self.home}/nodes/{name}/worker.log") as h:
            return h.read()


def expect(what, p, code, *texts):
    if p.returncode != code or any(t not in p.stderr for t in texts) or (code and p.stderr.count("\n") != 1):
        raise Failure(f"{what}: found exit {p.returncode} ({p.stderr!r}), expected {code} and one line with {texts}")
    print(f"ok  {what}: {p.stderr.strip() or 'exit 0'}", flush=True)


def refused(c, what, node, text):
    """It says why, tries on, and its node never appears."""
    wait_for(f"{what}: {text!r} in its log", lambda: text in c.log_of(node), 20)
    time.sleep(0.3)
    known = [n["name"] for n in c.json("node", "list")["nodes"] if n["state"] == "ready"]
    c.stop(node, 9)
    if node in known:
        raise Failure(f"{what}: node {node} is ready")
    print(f"ok  {what}: refused", flush=True)


def main():
    build = sys.argv[1]
    with Tls(build) as c:
        c.worker("node-0", "node-0")
        c.worker("node-1", "node-1")
        c.wait_ready(2)
        # A whole job, submitted and followed over the network.
        p = c.as_("alice", "submit", JOB, *SMALL, "--wait", "--set", "train.steps=8", "--set", f"data.path={c.home}/text", "--set", f"checkpoint.dir={c.home}/ckpt", "-o", "json")
        if '"COMPLETED"' not in p.stdout or '"alice"' not in p.stdout:
            raise Failure(f"a job over mTLS: {p.stdout} {p.stderr}")
        print("ok  a job of user alice ran on two workers over mTLS", flush=True)
        # Whose jobs are whose.
        c.as_("alice", "submit", JOB, *SMALL, *paced(20), "--name", "hers", "--set", "train.steps=100000", "--set", f"data.path={c.home}/text", "--set", f"checkpoint.dir={c.home}/ckpt2")
        c.wait_step(2, 1)
        # Everyone sees the queue; only who submitted a job, and admin, read its logs and act on it.
        if c.as_("bob", "list", "-o", "name").stdout.split() != ["2"]:
            raise Failure("bob does not see the queue")
        for command in ("save", "logs", "metrics"):
            expect(f"bob {command} of alice's job", c.as_("bob", *command.split(), "2", check=False), 4, "belongs to alice")
        expect("bob reading a node's log", c.as_("bob", "logs", "--node", "node-0", check=False), 4, "administrators")
        expect("bob may not cancel alice's job", c.as_("bob", "cancel", "2", check=False), 4, "2")
        if c.as_("admin", "list", "-o", "name").stdout.split() != ["2"]:
            raise Failure("admin does not see all jobs")
        c.as_("alice", "cancel", "2", "--now")
        c.wait_done(2, state="CANCELLED")
        c.as_("alice", "submit", JOB, *SMALL, *paced(20), "--name", "hers-too", "--set", "train.steps=100000", "--set", f"data.path={c.home}/text", "--set", f"checkpoint.dir={c.home}/ckpt2")
        c.as_("admin", "cancel", "3", "--now")
        c.wait_done(3, state="CANCELLED")
        print("ok  a user acts on own jobs, admin on all", flush=True)
        # Who may not attach, and who may not ask.
        c.worker("node-2", "node-0")
        refused(c, "a node's certificate under another name", "node-2", "expected 'node-0'")
        c.worker("node-3", "alice")
        refused(c, "a user's certificate attaching as a worker", "node-3", "only a worker's certificate")
        expect("a node's certificate asking", c.as_("node-0", "list", check=False), 4, "may not ask")
        # Another authority: on either side.
        other = c.home + "/other"
        c.ctl("admin", "certs", "--out", other, "--ip", "127.0.0.1", "--node", "node-4", "--user", "mallory")
        p = c.as_("admin", "list", certs=other, ca=c.certs, check=False)
        if p.returncode not in (4, 5) or p.stdout:
            raise Failure(f"a client of another CA: found exit {p.returncode} {p.stdout!r} {p.stderr!r}")
        p = c.as_("admin", "list", ca=other, check=False)
        if p.returncode != 5:
            raise Failure(f"a controller of another CA: found exit {p.returncode} {p.stdout!r} {p.stderr!r}")
        c.worker("node-4", "node-4", certs=other, ca=c.certs)
        time.sleep(2)
        refused(c, "a worker of another CA", "node-4", "trying again")
        # No certificate at all.
        p = c.ctl("--controller", c.address, "list", check=False)
        if p.returncode == 0 or "tls" not in p.stderr.lower():
            raise Failure(f"a network address without certificates: found exit {p.returncode} {p.stderr!r}")
        print("ok  no certificates:", p.stderr.strip(), flush=True)
        p = subprocess.run([c.build + "/fp8d", "--state", c.home + "/x", "--listen", "ipv4:0.0.0.0:7411"], stderr=subprocess.PIPE, text=True, timeout=20, check=False)
        expect("fp8d without TLS", p, 2, "fp8ctl admin certs", "--tls-ca")
        if os.path.exists(c.home + "/x"):
            raise Failure("fp8d made its folder though it refused")
        if c.stop("fp8d") != 0:
            raise Failure("fp8d did not end in order")


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"tls: {e}")
