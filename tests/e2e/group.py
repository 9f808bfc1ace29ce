#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`group.py BUILD`: one socket for a group of users who are known by their credentials: a job, its ranks and its files belong to who submitted it. Needs root; else skipped (77)."""
import glob
import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SLOWDOWN, SMALL, Failure, paced, run_script, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")


def users():
    """Two that every distribution has, and the group of the socket, which the second is not in by itself."""
    return pwd.getpwnam("nobody"), pwd.getpwnam("daemon"), grp.getgrnam("users")


class Group(Bare):
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.address = f"group:{self.home}/fp8d.sock"

    def as_(self, user, *args, groups=(), check=False):
        gids = ",".join(str(g) for g in [user.pw_gid, *groups])
        argv = ["setpriv", "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--groups", gids, self.build + "/fp8ctl", "--controller", f"group:{self.home}/fp8d.sock", *args]
        p = subprocess.run(argv, cwd="/", env={"PATH": os.environ["PATH"], "HOME": "/", **{k: v for k, v in os.environ.items() if "SAN_OPTIONS" in k}}, stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60 * SLOWDOWN, check=False)
        if check and p.returncode != 0:
            raise Failure(f"{user.pw_name}: fp8ctl {' '.join(args)}: exit {p.returncode}: {p.stderr}")
        return p

    def ctl(self, *args, **kw):
        if args[0] != "cluster" and "--controller" not in args:
            args = ("--controller", f"group:{self.home}/fp8d.sock", *args)
        return super().ctl(*args, **kw)


def check(what, found, expected):
    if found != expected:
        raise Failure(f"{what}: found {found!r}, expected {expected!r}")
    print(f"ok  {what}", flush=True)


def uid_of(pid):
    with open(f"/proc/{pid}/status") as h:
        return [line.split()[1:5] for line in h if line.startswith(("Uid:", "Gid:"))]


def main():
    one, two, group = users()
    home_of = {u.pw_uid: u for u in (one, two)}
    with Group(sys.argv[1], nodes=1, devices=4, controller=["--allow-test-hooks", "--group", group.gr_name]) as c:
        s = os.stat(c.home + "/fp8d.sock")
        check("mode and group of the socket", (stat.S_IMODE(s.st_mode), s.st_gid), (0o660, group.gr_gid))
        check("the store stays root's own", stat.S_IMODE(os.stat(c.home + "/fp8d.db").st_mode), 0o600)
        os.chmod(c.home, 0o755)
        shutil.copy(os.path.join(ROOT, "README.md"), c.home + "/text")
        shutil.copy(JOB, c.home + "/job.yaml")
        for f in ("text", "job.yaml"):
            os.chmod(f"{c.home}/{f}", 0o644)
        for u in home_of.values():
            d = f"{c.home}/{u.pw_name}"
            os.mkdir(d)
            os.chown(d, u.pw_uid, u.pw_gid)
            os.chmod(d, 0o700)
        args = lambda u, *more: ("submit", c.home + "/job.yaml", "--set", f"data.path={c.home}/text", "--set", f"checkpoint.dir={c.home}/{u.pw_name}/ckpt",
                                 "--set", "checkpoint.keep_last=1", *SMALL, *paced(20), *more)
        p = c.as_(one, "list")
        check("a user outside the group has no way in", (p.returncode, p.stdout), (p.returncode if p.returncode in (4, 5) else 4, ""))
        g = [group.gr_gid]
        c.as_(one, *args(one, "--set", "train.steps=100000", "-o", "name"), groups=g, check=True)
        c.wait_step(1, 22)
        j = c.job(1)
        check("the job belongs to its submitter", j["user"], one.pw_name)
        pids = c.pids(1)
        check("its ranks run as the submitter", {tuple(map(tuple, uid_of(p))) for p in pids.values()},
              {((str(one.pw_uid),) * 4, (str(one.pw_gid),) * 4)})
        wait_for("retention as the user", lambda: len(glob.glob(f"{c.home}/{one.pw_name}/ckpt/**/step_*/manifest.json", recursive=True)) >= 1, 10)
        # Not even what another may read is theirs to change; and checkpoint folders of others cannot be written.
        for command in (("cancel", "1"), ("cancel", "1", "--now"), ("save", "1"), ("logs", "1")):
            p = c.as_(two, *command, groups=g)
            check(f"another user: {' '.join(command)}", (p.returncode, one.pw_name in p.stderr), (4, True))
        p = c.as_(two, "submit", c.home + "/job.yaml", "--set", f"data.path={c.home}/text", "--set", f"checkpoint.dir={c.home}/{one.pw_name}/mine", groups=g)
        check("another user's folder is refused before anything runs", (p.returncode != 0, "checkpoint.dir" in p.stderr or "ermission" in p.stderr), (True, True))
        check("the job runs on", c.job(1)["state"], "RUNNING")
        c.as_(one, "save", "1", groups=g, check=True)
        c.as_(one, "cancel", "1", groups=g, check=True)
        c.wait_done(1, state="CANCELLED")
        owners = {(os.lstat(p).st_uid, os.lstat(p).st_gid) for p in glob.glob(f"{c.home}/{one.pw_name}/ckpt/**", recursive=True)}
        check("checkpoint files belong to the submitter", owners, {(one.pw_uid, one.pw_gid)})
        wait_for("retention: one checkpoint of the job", lambda: len(glob.glob(f"{c.home}/{one.pw_name}/ckpt/**/step_*/manifest.json", recursive=True)) == 1, 10)
        c.as_(two, *args(two, "--set", "train.steps=6", "--wait"), groups=g, check=True)
        check("a second user's job", c.job(c.json("list", "--all")["jobs"][-1]["id"])["user"], two.pw_name)
        # Root is the administrator.
        c.as_(two, *args(two, "--set", "train.steps=100000"), groups=g, check=True)
        last = c.json("list", "--all")["jobs"][-1]["id"]
        c.ctl("cancel", str(last), "--now")
        c.wait_done(last, state="CANCELLED")
        print("ok  root cancels anyone's job", flush=True)


def missing():
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return "needs root and setpriv"
    try:
        users()
    except KeyError as e:
        return str(e)
    return None


if __name__ == "__main__":
    run_script("group", main, missing())
