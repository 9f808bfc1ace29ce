#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`panic_lost.py BUILD FOLDER`, on the host: a controller to which the guest's worker comes over mTLS; then the guest's kernel panics, and its node is lost in milliseconds, while its lease would have run for minutes.
In FOLDER the guest finds certs/ and `ports`, then `go`; it writes `last` before it panics."""
import os
import socket
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tests"), os.path.join(ROOT, "tests/e2e")]
from bare import Bare  # noqa: E402
from cluster import Failure, wait_for  # noqa: E402
from tls import files, free_port  # noqa: E402

NODE = "node-7"
GUEST_SEES = "10.0.2.2" # the host, by QEMU's user network
WITHIN_S = 1.0


def write(path, text):
    with open(path + ".new", "w") as f:
        f.write(text)
    os.rename(path + ".new", path)


def free_datagram_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def forge(port):
    """Of the right form, for the right node, but nobody has signed it."""
    boot = b"6c9baa41-377f-4d38-825f-706c560288a8"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for data in (b"", b"FP8GASP1", b"FP8GASP1" + bytes(8) + NODE.encode().ljust(64, b"\0") + boot.ljust(40, b"\0") + bytes(136) + bytes(32), os.urandom(288), bytes(2048)):
            s.sendto(data, ("127.0.0.1", port))


class Controller(Bare):
    def __init__(self, build, folder):
        super().__init__(build, nodes=0)
        self.folder, self.certs = folder, folder + "/certs"
        self.listen, self.panic = free_port(), free_datagram_port()

    def up(self):
        self.ctl("admin", "certs", "--out", self.certs, "--ip", "127.0.0.1", "--ip", GUEST_SEES, "--node", NODE)
        self.controller_args = ["--listen", f"ipv4:127.0.0.1:{self.listen}", *files(self.certs, "controller"), "--panic-listen", f"ipv4:127.0.0.1:{self.panic}", "--lease-ttl", "10m"]
        self.start_controller()
        write(self.folder + "/ports", f"{self.listen} {self.panic}\n")

    def state(self):
        return next((n["state"] for n in self.json("node", "list")["nodes"] if n["name"] == NODE), None)

    def said(self):
        return next((e for e in self.json("events")["events"] if e["kind"] == "node_lost"), None)


def main():
    build, folder = sys.argv[1:]
    with Controller(build, folder) as c:
        wait_for("the guest's worker", lambda: c.state() == "ready", 150, 0.2)
        wait_for("its driver to be told", lambda: os.path.exists(folder + "/set"), 60, 0.2)
        forge(c.panic)
        time.sleep(1)
        if c.state() != "ready":
            raise Failure(f"forged datagrams: found {NODE} {c.state()}")
        write(folder + "/go", "")
        said = wait_for("the node to be lost", c.said, 60, 0.2)
        after = said["unix_ms"] / 1e3 - os.stat(folder + "/last").st_mtime
        if "its kernel died: sysrq triggered crash" not in said["text"] or c.state() != "lost":
            raise Failure(f"found {said['text']}, {c.state()}")
        print(f"FIGURE: {said['text']}: {after * 1e3:.0f} ms after it was asked to, its lease was of 10 minutes", flush=True)
        if after >= WITHIN_S:
            raise Failure(f"it took {after:.3f} s, expected less than {WITHIN_S} s")


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
