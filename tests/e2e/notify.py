#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`notify.py BUILD`: fp8d and fp8-worker as systemd sees them: READY=1 when they serve, WATCHDOG=1 in time, STOPPING=1 on SIGTERM. Skipped (77) when built without libsystemd."""
import os
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import SLOWDOWN, Failure  # noqa: E402

WATCHDOG_S = 1.0


class Notified:
    """The socket that systemd would hold."""

    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.s.bind(path)
        self.path = path

    def env(self, watchdog):
        e = {"NOTIFY_SOCKET": self.path}
        if watchdog:
            e["WATCHDOG_USEC"] = str(int(WATCHDOG_S * 1e6))
        return e

    def next(self, seconds):
        self.s.settimeout(seconds * SLOWDOWN)
        try:
            return self.s.recv(4096).decode().split("\n")
        except socket.timeout:
            return []

    def until(self, what, word, seconds):
        end = time.monotonic() + seconds * SLOWDOWN
        while time.monotonic() < end:
            said = self.next(max(0.01, end - time.monotonic()))
            if word in said:
                return said
        raise Failure(f"{what}: no {word} within {seconds * SLOWDOWN:.0f} s")


def watch(c, name, n):
    """After READY: the watchdog is fed at least every half of its time, then STOPPING and exit 0."""
    times = []
    while len(times) < 4:
        n.until(name, "WATCHDOG=1", WATCHDOG_S)
        times.append(time.monotonic())
    gaps = [b - a for a, b in zip(times, times[1:])]
    if max(gaps) > WATCHDOG_S * SLOWDOWN:
        raise Failure(f"{name}: gaps between WATCHDOG=1 of {gaps} s, expected less than {WATCHDOG_S}")
    p = c.started[name]
    p.terminate()
    n.until(name, "STOPPING=1", 10)
    if p.wait(20 * SLOWDOWN) != 0:
        raise Failure(f"{name}: exit {p.returncode} after SIGTERM")
    del c.started[name]
    print(f"ok  {name}: READY, {len(times)} times WATCHDOG (at most {max(gaps):.2f} s apart), STOPPING, exit 0", flush=True)


def main():
    build = sys.argv[1]
    linked = subprocess.run(["ldd", build + "/fp8d"], stdout=subprocess.PIPE, text=True, check=False).stdout
    if "libsystemd" not in linked:
        print("skipped: built without libsystemd")
        sys.exit(77)
    c = Bare(build, nodes=0)
    c.up = lambda: None
    with c:
        d, w = Notified(c.home + "/notify-fp8d"), Notified(c.home + "/notify-worker")
        c.env = {"fp8d": d.env(True), "node-0": w.env(True)}
        # A worker is ready without a controller: systemd must not end it, and the ranks it holds, while the controller is away.
        c.start_worker("node-0")
        w.until("fp8-worker", "READY=1", 10)
        c.start_controller()
        said = d.until("fp8d", "READY=1", 10)
        if not any(x.startswith("STATUS=") and len(x) > 7 for x in said):
            raise Failure(f"READY=1 without a STATUS: {said}")
        c.wait_ready(1)
        watch(c, "node-0", w)
        watch(c, "fp8d", d)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"notify: {e}")
