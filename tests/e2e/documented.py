#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`documented.py BUILD`: what `-o json` prints has the keys of docs/json.md, no more and no fewer; jobs that cannot run are refused, or wait and say for what."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, SMALL, Failure, paced, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")


def sections():
    """{heading: text} of docs/json.md."""
    with open(os.path.join(ROOT, "docs/json.md")) as h:
        parts = re.split(r"^## (.*)$", h.read(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def table_keys(text):
    return {k for row in re.findall(r"^\| (`[^|]*) \|", text, flags=re.M) for k in re.findall(r"`(\w+)`", row)}


def words(text, first, last):
    """`key`s between two words, without what stands in parentheses (values)."""
    part = text[text.index(first):text.index(last) + len(last)]
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", part)))


def same(what, found, expected):
    if set(found) != set(expected):
        raise Failure(f"{what}: printed and not documented {sorted(set(found) - set(expected))}, documented and not printed {sorted(set(expected) - set(found))}")
    print(f"ok  {what}: {len(set(found))} keys as documented", flush=True)


def types(job):
    """Numbers are numbers or null, never text or NaN."""
    for key, kinds in {"id": int, "epoch": int, "step": int, "steps": int, "loss_first": float, "loss_last": float, "wall_s": (int, float), "tokens": int, "checkpoint": str, "state": str}.items():
        if not isinstance(job[key], kinds):
            raise Failure(f"{key}: found {job[key]!r}, expected {kinds}")


def refused(c, what, code, texts, *args):
    before = c.json("list", "--all")["jobs"]
    p = c.ctl("submit", JOB, "--set", f"checkpoint.dir={c.home}/no", *args, check=False)
    if p.returncode != code or p.stderr.count("\n") != 1 or any(t not in p.stderr for t in texts):
        raise Failure(f"{what}: found exit {p.returncode} ({p.stderr!r}), expected {code} and one line with {texts}")
    if c.json("list", "--all")["jobs"] != before:
        raise Failure(f"{what}: refused, and yet something was stored")
    print(f"ok  {what}: {p.stderr.strip()}", flush=True)


def refusals(c):
    refused(c, "no data", 2, ["preflight", "data.path", "nothing.txt"], "--set", f"data.path={c.home}/nothing.txt")
    with open(c.home + "/file", "w") as h:
        h.write("not a folder")
    refused(c, "no folder for checkpoints", 2, ["preflight", "checkpoint.dir"], "--set", f"checkpoint.dir={c.home}/file/ckpt")
    if c.json("node", "get", "node-0")["devices"][0]["memory_bytes"] < 100 << 30:
        refused(c, "a model that does not fit", 2, ["MiB", "parallel"], "--set", "model.preset=llama-8b")
    refused(c, "a key that is not there", 2, ["parallel.dq"], "--set", "parallel.dq=2")
    refused(c, "tp that does not divide heads", 2, ["parallel.tp"], "--set", "parallel.tp=3")
    refused(c, "a donor that is not there", 2, ["nowhere"], "--from", c.home + "/nowhere")


def main():
    doc = sections()
    job_keys = table_keys(doc["Job"].split("`submit --dry-run`")[0]) - {"warnings"}
    describe_keys = table_keys(doc["Job"].split("`describe JOB`")[1])
    plan_rank = words(doc["Job"], "`rank`, `pp_index`", "`rail`") - {"starting", "ready", "running", "parked", "lost", "done"}
    with Bare(sys.argv[1], nodes=2, devices=2, controller=["--allow-test-hooks"]) as c:
        refusals(c)
        job = c.submit(JOB, *SMALL, *paced(60), "--set", "train.steps=12", "--set", f"checkpoint.dir={c.home}/ckpt")
        # All devices are taken: the next one waits and says so.
        waits = c.submit(JOB, *SMALL, "--set", "train.steps=6", "--name", "waits", "--set", f"checkpoint.dir={c.home}/ckpt2")
        j = c.job(waits)
        if j["state"] != "PENDING" or "needs 4 devices" not in j["reason"]:
            raise Failure(f"a job without devices: found {j['state']} ({j['reason']})")
        j = c.wait_done(job)
        types(j)
        same("get", j, job_keys | {"v"})
        same("list", {**c.json("list", "--all")["jobs"][0], "v": 1}, job_keys | {"v"})
        same("wait", c.json("wait", str(job)), job_keys | {"v"})
        d = c.describe(job)
        same("describe", d, job_keys | describe_keys | {"v"})
        same("its plan", d["plan"], {"tp", "pp", "dp", "bytes_per_rank", "split_groups", "ring_hops", "ring_crossings", "ranks"})
        same("its ranks", d["plan"]["ranks"][0], plan_rank)
        for option in ("--dry-run", "--plan"):
            p = c.json("submit", JOB, option, "--set", f"checkpoint.dir={c.home}/ckpt3")
            same("submit " + option, p, {"v", "job", "plan", "warnings"})
            if p["job"]["id"] != 0 or len(p["plan"]["ranks"]) != 4:
                raise Failure(f"submit {option}: {p}")
        c.wait_done(waits)
        same("events", c.json("events", str(job))["events"][0], words(doc["Events"], "`id`, `unix_ms`", "`ms`"))
        same("metrics", c.json("metrics", str(job))["rows"][0], words(doc["Metrics"], "`step`, `epoch`", "`t`"))
        told = doc["What went wrong, and where the time went"]
        same("why", c.json("why", str(job)), words(told, "`v`", "`warnings`"))
        same("goodput", c.json("goodput", str(job)), words(told[told.index("`goodput JOB`") + 14:], "`v`", "`other_s`"))
        node = c.json("node", "get", "node-0")
        device = {"index", "kind", "name", "memory_bytes", "job_id", "rank", "health", "pci", "path", "numa", "nvlinks", "nvlink_domain", "rail"}
        same("node get", node, (words(doc["Nodes"], "`name`, `state`", "`devices`") | {"v"}))
        same("its devices", node["devices"][0], device)
        c.ctl("rollout", "start", "--fact", "site.nothing=1")
        rollout = c.json("rollout", "status")
        same("rollout status", rollout, words(doc["Rollouts"], "`id`, `name`", "`p`") | {"nodes", "v"})
        same("its nodes", rollout["nodes"][0], words(doc["Rollouts"], "* **nodes**", "`again`") - {"nodes"})
        c.ctl("rollout", "abort")
        same("ckpt ls", c.json("ckpt", "ls", str(job))["checkpoints"][0], words(doc["Checkpoints"], "`job_id`", "`committed_unix_ms`"))
        wait_for("free devices", lambda: all(x["job_id"] == 0 for n in c.json("node", "list")["nodes"] for x in n["devices"]), 10)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"documented: {e}")
