#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Completion in a real zsh at a terminal: sourced, and found in fpath by the first TAB. Skipped where there is no zsh.

    zsh.py BUILD
"""
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

WANT = [("fp8ctl clus", "fp8ctl cluster"), ("fp8ctl submit --dr", "fp8ctl submit --dry-run"), ("fp8ctl list -o js", "fp8ctl list -o json"),
        ("fp8ctl --dir /tmp node des", "fp8ctl --dir /tmp node describe"), ("fp8ctl help node g", "fp8ctl help node get")]


def read_until(fd, text, seconds):
    out, end = "", time.monotonic() + seconds
    while text not in out and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                out += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x07\r]", "", os.read(fd, 65536).decode(errors="replace"))
            except OSError:
                break
    return out


def session(name, build, home, setup):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(PATH=build + ":" + os.environ["PATH"], HOME=home, FP8CTL_HOME=home, TERM="dumb")
        os.execvp("zsh", ["zsh", "-f"])
    bad = 0
    os.write(fd, (setup + "; print rea''dy\n").encode())
    read_until(fd, "ready", 20)
    for typed, want in WANT:
        os.write(fd, ("\x15" + typed + "\t").encode())
        said = read_until(fd, want, 10)
        bad += want not in said
        print(f"{'ok' if want in said else 'FAILED'}  {name}: {typed!r}" + ("" if want in said else f": found {said!r}, expected {want!r}"))
    os.write(fd, b"\x15exit\n")
    os.close(fd)
    os.waitpid(pid, 0)
    return bad


def main():
    build = os.path.abspath(sys.argv[1])
    if not shutil.which("zsh"):
        print("no zsh here")
        return 77
    with tempfile.TemporaryDirectory(prefix="fp8-zsh-") as home:
        with open(home + "/_fp8ctl", "wb") as f:
            f.write(subprocess.run([build + "/fp8ctl", "completion", "zsh"], check=True, stdout=subprocess.PIPE).stdout)
        begin = "autoload -U compinit; compinit -u -D"
        bad = session("sourced", build, home, begin + "; source <(fp8ctl completion zsh)")
        bad += session("from fpath", build, home, f"fpath=({home} $fpath); " + begin)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
