#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`xids.py BUILD`, in the guest with fp8guard loaded: every Xid of the vendor's table, written to /dev/kmsg, is in `fp8ctl node get` with the action that the table asks for, by both ways there are to the
kernel's log: node-0's worker reads /dev/kmsg, node-1's has the driver only. Hostile lines change nothing, and a controller without test hooks passes over all that a process wrote.

Each node has eight devices and a made-up /proc/driver/nvidia for them, so that actions on one device are seen on that device."""
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from bare import Bare  # noqa: E402
from cluster import Failure, wait_for  # noqa: E402

DEVICES = 8
# By the vendor's catalogue, in gpud's and NVSentinel's classes; not taken from the controller's table. 45: alone.
CLASSES = {
    "log": [43, 44, 63, 66, 67, 92, 121, 137, 160],
    "restart rank": [8, 11, 13, 31, 32, 39, 40, 41, 45, 69, 70, 71, 72, 75, 76, 77, 80, 94],
    "warn": [74, 999],
    "reset device": [46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, *range(144, 151), 155, 156, 158],
    "drain": [154],
    "evict": [79, 151],
    "rma": [54],
}
RECOVERY = "GPU recovery action changed from 0x0 (None) to 0x%s"
# Several of one GPU: [(code, text, action)].
SERIES = [
    [(31, "", "restart rank"), (31, "", "drain")],
    [(13, "", "restart rank"), (45, "", "log")],
    [(74, "", "warn"), (74, "", "reset device")],
    [(48, "", "reset device"), (48, "", "rma")],
    [(147, "", "reset device"), (147, "", "rma")],
    [(46, "", "reset device"), (62, "", "reset device"), (64, "", "reset device"), (95, "", "reset device"), (109, "", "rma")],
    [(154, RECOVERY % "0 (None)", "log")],
    [(154, RECOVERY % "1 (GPU Reset Required)", "reset device")],
    [(154, RECOVERY % "2 (Node Reboot Required)", "evict")],
    [(154, RECOVERY % "4 (Drain and Reset)", "drain")],
    [(154, RECOVERY % "9 (Something New)", "drain")],
]
HOSTILE = [
    "NVRM: Xid (PCI:0000", "NVRM: Xid (x): 99999, y", "NVRM: Xid (x): -1, y", "xNVRM: Xid (PCI:0000:3b:00): 79, y", "NVRM: Xid (PCI:0000:3b:00): 79x", "NVRM: Xid (PCI:0000:3b:00): ", "NVRM: Xid (PCI:0000:3b:00):79",
    "NVRM: Xid ): 79x", "NVRM: Xid (PCI:" + "0" * 850 + "): 79, y", "NVRM: Xid (PCI:0000:3b:00): " + "7" * 800, "NVRM: Xid (PCI:0000:3b:00)\n: 79, y", "<0>NVRM: Xid (%n%n%s): %s", "NVRM: Xid (PCI:0000:3b:00): +79",
    "NVRM: Xid (PCI:0000:3b:00): 0, y", "NVRM: Xid (PCI:../../etc): 79, y", "NVRM: Xid (PCI:0000:3b:0g): 79, y", "3,1,1000,-;NVRM: Xid (PCI:0000:3b:00): 79, y", "NVRM: Xid (PCI:0000:3b:00): 99999999999999999999, y",
    "NVRM: Xid (PCI:0000:3b:00): \0 79, y", "\x1b[2JNVRM: Xid (PCI:0000:3b:00): 79, y",
]


def say(line):
    with open("/dev/kmsg", "w") as h: # a record without a new line at its end is not shown before the next one
        h.write(("" if line.startswith("<") else "<3>") + line + "\n")


def xid(bus, code, text="", pid=1):
    say(f"NVRM: Xid (PCI:0000:{bus:02x}:00): {code}, pid={pid}, name=python3, {text}")


class Nodes(Bare):
    def start_worker(self, name, *extra):
        root = f"{self.home}/{name}.root"
        for i in range(DEVICES):
            place = f"{root}/proc/driver/nvidia/gpus/0000:{0xe0 + i:02x}:00.0"
            os.makedirs(place)
            os.makedirs(root + "/dev", exist_ok=True)
            with open(place + "/information", "w") as h:
                h.write(f"Model: \t\t a model\nDevice Minor: \t {i}\n")
            with open(f"{root}/dev/nvidia{i}", "w"):
                pass
        device = "/dev/kmsg" if name == "node-0" else "/dev/fp8guard"
        os.mknod(root + device, 0o20600, os.stat(device).st_rdev)
        super().start_worker(name, "--health-root", root, *extra)

    def node(self, name):
        return self.json("node", "get", name)

    def findings(self, name):
        return [(f["check"], f["subject"], f["code"], f["action"]) for f in self.node(name)["findings"]]

    def both(self, what, expected):
        """The newest findings of either node."""
        for name in ("node-0", "node-1"):
            try:
                wait_for(f"{what} on {name}", lambda n=name: self.findings(n)[-len(expected):] == expected, 10, 0.2)
            except Failure:
                found = self.findings(name)[-len(expected):]
                wrong = [p for p in zip(found, expected) if p[0] != p[1]] or found
                raise Failure(f"{what}, {name}: {len(found)} findings, expected {len(expected)}; the first that differ (found, expected): {wrong[:5]}") from None

    def held(self, what, word, devices):
        """What either node is kept from: word is "well", "drain", "evict" or "rma"; devices: those that get no rank. It is uncordoned then, but for its devices."""
        def found(name):
            n = self.node(name)
            grave = n["health"] if n["health"] in ("drain", "evict") else "well"
            return "rma" if n["rma"] else grave, n["duty"] == "open", [d["index"] for d in n["devices"] if d["health"]]

        for name in ("node-0", "node-1"):
            try:
                wait_for("", lambda n=name: found(n) == (word, word == "well", devices), 10, 0.2)
            except Failure:
                raise Failure(f"{what}, {name}: found {found(name)}, expected {(word, word == 'well', devices)}") from None
            if word != "well":
                self.ctl("node", "uncordon", name)


def table(c):
    expected = []
    bus = 1
    for action, codes in CLASSES.items():
        for code in codes:
            xid(bus, code)
            expected.append(("xid", f"0000:{bus:02x}:00", code, action))
            bus += 1
    c.both("each Xid once", expected)
    c.held("all of them", "rma", [])
    series = []
    for one in SERIES:
        for i, (code, text, action) in enumerate(one):
            xid(bus, code, text, 100 + i)
            series.append(("xid", f"0000:{bus:02x}:00", code, action))
        bus += 1
    c.both("Xids that come again, and recovery actions", series)
    return len(expected), len(series)


def classes(c):
    """What each class does to the node and its devices."""
    for code, action in ((43, "log"), (13, "restart rank"), (74, "warn")):
        xid(0xe0, code)
        c.both(f"Xid {code}", [("xid", "0000:e0:00", code, action)])
        c.held(f"Xid {code}", "well", [])
    xid(0xe1, 95)
    c.held("Xid 95", "well", [1])
    xid(0xe2, 64)
    c.held("Xid 64", "well", [1, 2])
    for name in ("node-0", "node-1"):
        c.ctl("node", "uncordon", name)
    xid(0xe3, 154, RECOVERY % "9 (Something New)")
    c.held("Xid 154", "drain", [])
    xid(0xe4, 79)
    c.held("Xid 79", "evict", [])
    xid(0xe5, 54)
    c.held("Xid 54", "rma", [])


def hostile(c):
    before = {n: c.findings(n) for n in ("node-0", "node-1")}
    for line in HOSTILE:
        say(line)
    xid(0xf0, 43) # what came before it has been looked at
    c.both("the line behind them", [("xid", "0000:f0:00", 43, "log")])
    for name, was in before.items():
        found = c.findings(name)
        if found != (was + [("xid", "0000:f0:00", 43, "log")])[-64:]:
            raise Failure(f"{name}: hostile lines made {found[-3:]}")
    c.held("hostile lines", "well", [])


def main():
    build = sys.argv[1]
    options = ["--health-share", "100", "--health-settle", "100ms"]
    with Nodes(build, nodes=2, devices=DEVICES, controller=[*options, "--allow-test-hooks"]) as c:
        classes(c)
        hostile(c)
        n, m = table(c)
        print(f"FIGURE: {n} Xids of the table and {m} that came again, by /dev/kmsg and by the driver: the actions asked for; {len(HOSTILE)} hostile lines changed nothing", flush=True)
    with Nodes(build, nodes=2, devices=DEVICES, controller=options) as c:
        subprocess.run(["dd", "if=/dev/bad", "of=/dev/null", "bs=4096", "skip=1024", "count=1", "iflag=direct"], stderr=subprocess.DEVNULL, check=False)
        for name in ("node-0", "node-1"):
            wait_for(f"a line of the kernel's own on {name}", lambda n=name: c.findings(n), 10, 0.2)
            found = {f[:2] for f in c.findings(name)}
            if found != {("io", "bad")}:
                raise Failure(f"{name}: without test hooks found {found}, expected the kernel's own line alone")
        print("FIGURE: without test hooks all of them were passed over, and the kernel's own line was not", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"FAILED: {e}")
