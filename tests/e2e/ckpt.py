#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`ckpt.py BUILD [PART...]`: fp8ctl ckpt on checkpoints of real jobs. Parts: loss (export, read by hf_reader.py, import, train on), bad (what is broken is named; bad input changes nothing), rm,
memory (a model larger than the memory that is allowed)."""
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from bare import Bare  # noqa: E402
from cluster import ROOT, Failure, wait_for  # noqa: E402

JOB = os.path.join(ROOT, "tests/e2e/job.yaml")
SEQ = 64
VALIDATION = 4  # documents


def check(what, condition, found=""):
    if not condition:
        raise Failure(f"{what}: {found}")
    print(f"ok  {what}", flush=True)


def write_text(path):
    """40 documents of 200 bytes: 201 tokens and 4 sequences each; a tenth of them, 4 documents and 16 sequences, is the validation split."""
    rng = random.Random(5)
    words = [bytes(rng.choices(b"etaoinshrdlu", k=rng.randint(2, 7))) for _ in range(40)]
    with open(path, "wb") as h:
        h.write(b"\n\n".join(b" ".join(rng.choice(words) for _ in range(120))[:200] for _ in range(40)) + b"\n")


def train(c, name, *sets, source=None, dp=2):
    extra = [x for s in sets for x in ("--set", s)] + (["--from", source] if source else [])
    job = c.submit(JOB, "--name", name, "--set", f"data.path={c.home}/text", "--set", "data.pack=false", "--set", "data.validation_split=0.1", "--set", f"checkpoint.dir={c.home}/{name}",
                   "--set", "optimizer.warmup_steps=0", "--set", f"train.eval_batches={16 // dp}", "--set", f"parallel.dp={dp}", *extra)
    return c.wait_done(job)


def reader(c, folder):
    p = subprocess.run([sys.executable, os.path.join(ROOT, "tests/e2e/hf_reader.py"), folder, c.home + "/text", str(SEQ), str(VALIDATION)], stdout=subprocess.PIPE, text=True, check=False,
                       env=dict(os.environ, OPENBLAS_NUM_THREADS="1"))
    if p.returncode == 77:
        print("skipped: no numpy for the independent reader")
        sys.exit(77)
    if p.returncode:
        raise Failure(f"hf_reader.py {folder}: exit {p.returncode}")
    r = json.loads(p.stdout)
    if r["transformers_gap"] is not None:
        check(f"{os.path.basename(folder)}: transformers' logits, {r['transformers_gap']:.1e} from the reader's", r["transformers_gap"] < 1e-3)
    return r


def near(what, found, expected, bound):
    check(f"{what}: {found:.7f}, the job's own {expected:.7f}", abs(found - expected) <= bound, f"more than {bound} apart")


def part_loss(c):
    a = train(c, "untied", "train.steps=10", "precision.recipe=fp32", "checkpoint.every_steps=5")
    b = train(c, "tied", "train.steps=5", "precision.recipe=block", "parallel.tp=1", "parallel.pp=2", "model.tie_word_embeddings=true")
    exact, rounded, tied = (f"{c.home}/{x}" for x in ("hf-fp32", "hf-bf16", "hf-tied"))
    c.ctl("ckpt", "export", "--format", "hf", "--dtype", "fp32", str(a["id"]), exact)
    e = c.json("ckpt", "export", a["checkpoint"], rounded, "--shard-mib", "1")
    check("a sharded export", e["files"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] and e["dtype"] == "bf16", e)
    c.ctl("ckpt", "export", str(b["id"]), tied, "--dtype", "fp32")
    near("fp32 export of tp2 dp2", reader(c, exact)["loss"], a["val_loss"], 2e-6 * a["val_loss"])
    near("bf16 export", reader(c, rounded)["loss"], a["val_loss"], 2e-3)
    near("tied FP8 model of pp2 dp2", reader(c, tied)["loss"], b["val_loss"], 2e-2)

    # Imports: the same loss, under another layout and with next to no learning rate; then FP8 from the rounded weights.
    for name, folder, bound, sets, dp in (("again", exact, 1e-6, ("precision.recipe=fp32", "parallel.tp=1"), 1), ("again-tied", tied, 2e-2, ("model.tie_word_embeddings=true", "precision.recipe=delayed"), 2),
                                          ("again-bf16", rounded, 2e-2, ("precision.recipe=block", "precision.moments=bf16", "parallel.pp=2", "parallel.tp=1"), 2)):
        c.ctl("ckpt", "import", folder, f"{c.home}/import-{name}")
        c.ctl("ckpt", "verify", f"{c.home}/import-{name}")
        j = train(c, name, "train.steps=1", "optimizer.lr=1e-30", "optimizer.min_lr=0", *sets, source=f"{c.home}/import-{name}", dp=dp)
        near(f"import ({name}) goes on", j["val_loss"], (b if "tied" in name else a)["val_loss"], bound)
    # The same weights, to the bit: export, import, export.
    c.ctl("ckpt", "export", f"{c.home}/import-again", f"{c.home}/hf-again", "--dtype", "fp32")
    with open(exact + "/model.safetensors", "rb") as x, open(f"{c.home}/hf-again/model.safetensors", "rb") as y:
        check("export, import, export gives the same file", x.read() == y.read())
    p = c.ctl("submit", JOB, "--from", exact, check=False)
    check("--from a Hugging Face folder says what to do", p.returncode == 2 and "ckpt import" in p.stderr and p.stderr.count("\n") == 1, p.stderr)

    for key, value, code, said in (("num_attention_heads", 8, 2, "num_attention_heads 4"), ("rope_theta", 5000, 0, "warning"), ("hidden_size", 256, 2, "hidden_size 128")):
        p = c.ctl("submit", JOB, "--plan", "--from", str(a["id"]), "--set", f"checkpoint.dir={c.home}/no", "--set", f"model.{key}={value}", "--set", "parallel.dp=1", check=False)
        check(f"--from a model of other {key}: {p.stderr.strip()}", p.returncode == code and said in p.stderr and p.stderr.count("\n") == 1, (p.returncode, p.stderr))

    # diff, of other layouts too
    d = c.json("ckpt", "diff", str(a["id"]), a["checkpoint"])
    check("diff of the same", d["equal"] and d["different"] == 0 and d["compared"] > 100 and d["tensors"] == [], d)
    p = c.ctl("ckpt", "diff", f"{a['id']}:5", str(a["id"]), "-o", "json", check=False)
    d = json.loads(p.stdout)
    check("diff of two steps", p.returncode == 1 and not d["equal"] and "step" in d["state"] and all(t["max_abs"] > 0 for t in d["tensors"] if t["differing"]), d["state"])
    c.ctl("ckpt", "import", rounded, f"{c.home}/import-x")
    d = json.loads(c.ctl("ckpt", "diff", f"{c.home}/import-x", f"{c.home}/import-again", "-o", "json", check=False).stdout)
    check("bf16 rounding is at most 2^-8 relative", 0 < max(t["max_rel"] for t in d["tensors"]) <= 2 ** -8 and len(d["tensors"]) > 20, d["tensors"][:1])


    documented(c, a, rounded)


def documented(c, a, folder):
    """What -o json prints has the keys of docs/json.md."""
    with open(os.path.join(ROOT, "docs/json.md")) as h:
        text = h.read()
    text = re.sub(r"\([^)]*\)", "", text[text.index("## Checkpoints"):text.index("## Cluster")])

    def keys(begin, end="\n\n"):
        at = text.index(begin) + len(begin)
        return set(re.findall(r"`(\w+)`", text[at:text.index(end, at)]))
    first, second = str(a["id"]), f"{a['id']}:5"
    show = c.json("ckpt", "show", first)
    verify = c.json("ckpt", "verify", first)
    diff = json.loads(c.ctl("ckpt", "diff", first, second, "-o", "json", check=False).stdout)
    for what, found, expected in (("show", show, keys("`ckpt show`:")), ("its shards", show["shards"][0], keys("* **shards**:", "\n")),
                                  ("its tensors", show["tensors"][0], keys("* **tensors**:", "`slices`") | {"slices"}), ("its slices", show["tensors"][0]["slices"][0], {"shard", "rows", "cols"}),
                                  ("verify", verify, keys("`ckpt verify`:", ".")), ("its shards", verify["shards"][0], keys("Here a shard is")),
                                  ("diff", diff, keys("`ckpt diff`:", ": those") ), ("its tensors", diff["tensors"][0], keys("every one:")),
                                  ("export", c.json("ckpt", "export", first, c.home + "/doc-hf"), keys("`ckpt export`:")),
                                  ("import", c.json("ckpt", "import", folder, c.home + "/doc-import"), keys("`ckpt import`:"))):
        check(f"{what}: {len(found)} keys as documented", set(found) == expected, (sorted(set(found) - expected), sorted(expected - set(found))))


# ------------------------------------------------------------------ broken things

def damage(c, folder, what, change, texts, tensor=None):
    """A copy with one change: verify finds it and says where; nothing loads it."""
    copy = f"{c.home}/damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    change(copy)
    p = c.ctl("ckpt", "verify", copy, "-o", "json", check=False)
    v = json.loads(p.stdout)
    bad = [s for s in v["shards"] if not s["ok"]]
    check(f"{what}: {p.stderr.strip()[:150]}", p.returncode == 1 and not v["ok"] and all(t in p.stderr for t in texts), (p.returncode, p.stderr))
    if tensor:
        check(f"{what}: the tensor is named", len(bad) == 1 and bad[0]["tensor"] == tensor, bad)
    target = c.home + "/from-damaged"
    p = c.ctl("ckpt", "export", copy, target, check=False)
    check(f"{what}: is not exported", p.returncode in (1, 3) and p.stderr.count("\n") == 1 and not os.path.exists(target), (p.returncode, p.stderr))


def flip(path, at, bit=1):
    with open(path, "r+b") as h:
        h.seek(at)
        b = h.read(1)
        h.seek(at)
        h.write(bytes([b[0] ^ bit]))


def header(path):
    with open(path, "rb") as h:
        n = struct.unpack("<Q", h.read(8))[0]
        return n, json.loads(h.read(n))


def write_safetensors(path, head, data):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    with open(path, "wb") as h:
        h.write(struct.pack("<Q", len(text)) + text + data)


def refuse_import(c, good, what, change, text):
    folder, target = c.home + "/bad-hf", c.home + "/bad-import"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    change(folder)
    before = sorted(os.listdir(c.home))
    p = c.ctl("ckpt", "import", folder, target, check=False)
    check(f"{what}: {p.stderr.strip()[:160]}", p.returncode in (1, 2, 3) and p.stderr.count("\n") == 1 and text in p.stderr, (p.returncode, p.stderr))
    check(f"{what}: nothing is left", sorted(os.listdir(c.home)) == before, sorted(set(os.listdir(c.home)) - set(before)))


def edit_json(name, change):
    def edit(folder):
        with open(f"{folder}/{name}") as h:
            o = json.load(h)
        change(o)
        with open(f"{folder}/{name}", "w") as h:
            json.dump(o, h)
    return edit


def edit_header(name, change):
    def edit(folder):
        n, head = header(f"{folder}/{name}")
        with open(f"{folder}/{name}", "rb") as h:
            data = h.read()[8 + n:]
        write_safetensors(f"{folder}/{name}", change(head) or head, data)
    return edit


def part_bad(c):
    a = train(c, "bad", "train.steps=2", "precision.recipe=fp32")
    folder = a["checkpoint"]
    shard = "shard-00001-of-00004.safetensors"
    n, head = header(f"{folder}/{shard}")
    name = "exp_avg:model.layers.1.mlp.down_proj.weight"
    name = name if name in head else sorted(k for k in head if k.startswith("exp_avg:"))[0]
    damage(c, folder, "a flipped bit", lambda d: flip(f"{d}/{shard}", 8 + n + head[name]["data_offsets"][0] + 5), [shard, "digest"], name)
    damage(c, folder, "a flipped bit of the header", lambda d: flip(f"{d}/{shard}", 20), [shard])
    damage(c, folder, "a torn shard", lambda d: os.truncate(f"{d}/{shard}", 70000), [shard, "70000"])
    damage(c, folder, "a shard that is gone", lambda d: os.unlink(f"{d}/{shard}"), [shard])

    def swap(d):
        os.rename(f"{d}/{shard}", d + "/x")
        os.rename(f"{d}/{shard.replace('00001', '00002')}", f"{d}/{shard}")
        os.rename(d + "/x", f"{d}/{shard.replace('00001', '00002')}")
    damage(c, folder, "swapped shards", swap, [shard, "found"])
    damage(c, folder, "a shard that the manifest forgot", edit_json("manifest.json", lambda m: m["shards"].pop(2)), ["no shard holds"])

    good = c.home + "/good-hf"
    c.ctl("ckpt", "export", folder, good, "--shard-mib", "1")
    one = "model-00001-of-00002.safetensors"
    index = "model.safetensors.index.json"
    norm = "model.norm.weight"
    outside = edit_json(index, lambda o: o["weight_map"].update({norm: "../text"}))
    refuse_import(c, good, "an index that leads out of the folder", outside, "plain name")
    refuse_import(c, good, "an index with a file that is not there", edit_json(index, lambda o: o["weight_map"].update({norm: "model-00009-of-00002.safetensors"})), "model-00009")
    refuse_import(c, good, "an index that names the wrong file", edit_json(index, lambda o: o["weight_map"].update({norm: one})), norm)
    refuse_import(c, good, "an index of lists", edit_json(index, lambda o: o["weight_map"].update({norm: ["x"]})), "plain name")
    refuse_import(c, good, "no weights", lambda d: [os.unlink(f"{d}/{f}") for f in os.listdir(d) if "safetensors" in f], "model.safetensors")
    refuse_import(c, good, "no config.json", lambda d: os.unlink(d + "/config.json"), "config.json")
    refuse_import(c, good, "config.json of another model", edit_json("config.json", lambda o: o.update(architectures=["GPT2LMHeadModel"])), "GPT2LMHeadModel")
    refuse_import(c, good, "config.json with other sizes", edit_json("config.json", lambda o: o.update(intermediate_size=512)), "shape")
    refuse_import(c, good, "config.json with more layers", edit_json("config.json", lambda o: o.update(num_hidden_layers=5)), "model.layers.4")
    refuse_import(c, good, "config.json with RoPE scaling", edit_json("config.json", lambda o: o.update(rope_scaling={"type": "linear", "factor": 2.0})), "rope_scaling")
    refuse_import(c, good, "a header longer than the file", lambda d: write_safetensors(f"{d}/{one}", b"{" * 100, b"")
                  or os.truncate(f"{d}/{one}", 50), "header")
    refuse_import(c, good, "a header of 2^62 bytes", lambda d: open(f"{d}/{one}", "wb").write(struct.pack("<Q", 1 << 62) + b"{}"), "header")
    refuse_import(c, good, "a header nested a million deep", lambda d: write_safetensors(f"{d}/{one}", b'{"a":' * 1000000, b""), "header")

    def embed(change):
        def edit(head):
            change(head["model.embed_tokens.weight"])
        return edit_header(one, edit)
    refuse_import(c, good, "an unknown type", embed(lambda t: t.update(dtype="C64")), "C64")
    refuse_import(c, good, "integers", embed(lambda t: t.update(dtype="I16")), "I16")
    refuse_import(c, good, "overlapping tensors", embed(lambda t: t.update(data_offsets=[2, 65538])), "hole")
    refuse_import(c, good, "a shape whose product overflows", embed(lambda t: t.update(shape=[1 << 40, 1 << 40])), "size")
    refuse_import(c, good, "a negative dimension", embed(lambda t: t.update(shape=[-256, -128])), "negative")
    refuse_import(c, good, "an offset outside", embed(lambda t: t.update(data_offsets=[0, 1 << 50])), "data_offsets")
    refuse_import(c, good, "a tensor of another kind of model", edit_header(one, lambda h: {k.replace("q_proj.weight", "q_proj.bias") if "layers.0" in k else k: v for k, v in h.items()}), "q_proj")

    def poison(d):
        n, h = header(f"{d}/{one}")
        at = 8 + n + h["model.embed_tokens.weight"]["data_offsets"][0]
        with open(f"{d}/{one}", "r+b") as f:
            f.seek(at + 2 * 77)
            f.write(b"\xc0\x7f")
    refuse_import(c, good, "a NaN", poison, "element 77")
    taken = c.home + "/taken"
    os.mkdir(taken)
    open(taken + "/mine", "w").close()
    for args in (("export", folder, taken), ("import", good, taken)):
        p = c.ctl("ckpt", *args, check=False)
        check(f"{args[0]} over something: {p.stderr.strip()}", p.returncode == 1 and os.listdir(taken) == ["mine"], p.stderr)
    p = c.ctl("ckpt", "show", "12345", check=False)
    check("show of a job that is not there", p.returncode == 3 and p.stderr.count("\n") == 1, (p.returncode, p.stderr))
    p = c.ctl("ckpt", "show", c.home + "/nowhere", check=False)
    check("show of a folder that is not there", p.returncode == 3 and p.stderr.count("\n") == 1, (p.returncode, p.stderr))
    p = c.ctl("ckpt", "show", c.home, check=False)
    check("show of a folder without checkpoints", p.returncode == 3 and "manifest.json" in p.stderr, (p.returncode, p.stderr))
    check("ls of a folder", [x["path"] for x in c.json("ckpt", "ls", os.path.dirname(folder))["checkpoints"]] == [folder])
    s = c.json("ckpt", "show", folder)
    t = next(t for t in s["tensors"] if t["name"] == "model.embed_tokens.weight")
    cells = sum((x["rows"][1] - x["rows"][0]) * (x["cols"][1] - x["cols"][0]) for x in t["slices"])
    check("show: the slices of a tensor add up", t["shape"] == [256, 128] and cells == 256 * 128 and s["state"]["model"]["hidden_size"] == 128, t)


# ------------------------------------------------------------------ rm

def part_rm(c):
    """What a job needs stays; what it does not goes, also for the controller's next life."""
    a = train(c, "rm", "train.steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=3")
    job = a["id"]
    paths = {k["step"]: k["path"] for k in c.json("ckpt", "ls", str(job))["checkpoints"]}
    live = c.submit(JOB, "--name", "live", "--set", f"checkpoint.dir={c.home}/live", "--set", "test.slow_ms=100", "--set", "checkpoint.every_steps=3", "--set", "checkpoint.keep_last=9")
    wait_for("two checkpoints of a live job", lambda: len(c.json("ckpt", "ls", str(live))["checkpoints"]) >= 2, 60)
    newest = c.json("ckpt", "ls", str(live))["checkpoints"]
    c.ctl("ckpt", "rm", f"{live}:{newest[0]['step']}")
    waiting = c.submit(JOB, "--name", "waiting", "--set", f"checkpoint.dir={c.home}/waiting", "--from", f"{job}:4")
    p = c.ctl("ckpt", "rm", paths[4], check=False)
    check(f"what a waiting job starts from stays: {p.stderr.strip()}", p.returncode == 1 and f"job {waiting}" in p.stderr and os.path.exists(paths[4] + "/manifest.json"), (p.returncode, p.stderr))
    c.ctl("cancel", "--now", str(waiting))

    def newest_refused():
        path = c.json("ckpt", "ls", str(live))["checkpoints"][-1]["path"]
        p = c.ctl("ckpt", "rm", path, check=False)
        return p if p.returncode == 1 and "newest" in p.stderr and os.path.exists(path) else None
    p = wait_for("the newest of a live job to be kept", newest_refused, 10)
    print(f"ok  the newest of a live job stays: {p.stderr.strip()}", flush=True)
    c.ctl("cancel", "--now", str(live))
    c.wait_done(live, state="CANCELLED")
    p = c.ctl("ckpt", "rm", f"{job}:2", os.path.relpath(paths[4]), "12345:6", f"{job}:77", "-o", "json", check=False)
    o = json.loads(p.stdout)
    check("rm of four, of which two are there", p.returncode == 3 and [x["step"] for x in o["removed"]] == [2, 4] and o["removed"][0] == {"path": paths[2], "job_id": job, "step": 2}
          and p.stderr.count("\n") == 2, (p.returncode, p.stdout, p.stderr))
    check("their folders are gone, the third is there", [os.path.exists(paths[s]) for s in (2, 4, 6)] == [False, False, True])
    check("ls", [k["step"] for k in c.json("ckpt", "ls", str(job))["checkpoints"]] == [6])
    check("it is an event", len([e for e in c.events(job)["events"] if e["kind"] == "checkpoint_removed"]) == 2)
    loose = c.home + "/loose"
    shutil.copytree(paths[6], loose)
    os.mkdir(c.home + "/precious")
    for f in (c.home + "/precious", c.home + "/text", str(job)):
        p = c.ctl("ckpt", "rm", f, check=False)
        check(f"no checkpoint: {p.stderr.strip()}", p.returncode in (1, 3) and p.stderr.count("\n") == 1, (p.returncode, p.stderr))
    check("a folder that no job lists", "removed" in c.ctl("ckpt", "rm", loose + "/").stdout and not os.path.exists(loose))
    c.stop("fp8d", 9)
    shutil.copytree(paths[6], loose)
    p = c.ctl("ckpt", "rm", loose, check=False)
    check(f"without a controller: {p.stderr.strip()}", p.returncode == 5 and os.path.exists(loose), (p.returncode, p.stderr))
    c.ctl("ckpt", "rm", "--force", loose)
    check("with --force", not os.path.exists(loose))
    c.start_controller()
    check("a later life of the controller", [k["step"] for k in c.json("ckpt", "ls", str(job))["checkpoints"]] == [6])


# ------------------------------------------------------------------ memory

def at_terminal(c, *args):
    """What it writes to a terminal on standard error, and its standard output."""
    ours, theirs = pty.openpty()
    env = dict(os.environ, FP8CTL_HOME=c.home, TERM="xterm")
    env.pop("NO_COLOR", None)
    p = subprocess.Popen([c.build + "/fp8ctl", *args], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    result = p.communicate()[0].decode()
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:  # EIO: the other end is closed
        pass
    os.close(ours)
    return said.decode(), result


def part_memory(c):
    """24 million parameters (92 MiB in F32) through import, verify and export, each with 40 MiB of memory of its own."""
    hidden, inner, vocab, layers = 512, 1536, 8192, 6
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
              "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True, "torch_dtype": "float16"}
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes.update({p + "input_layernorm.weight": [hidden], p + "post_attention_layernorm.weight": [hidden], p + "self_attn.q_proj.weight": [hidden, hidden],
                       p + "self_attn.k_proj.weight": [hidden // 2, hidden], p + "self_attn.v_proj.weight": [hidden // 2, hidden], p + "self_attn.o_proj.weight": [hidden, hidden],
                       p + "mlp.gate_proj.weight": [inner, hidden], p + "mlp.up_proj.weight": [inner, hidden], p + "mlp.down_proj.weight": [hidden, inner],
                       p + "self_attn.rotary_emb.inv_freq": [32]})
    head, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        head[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    folder = c.home + "/large-hf"
    os.mkdir(folder)
    with open(folder + "/config.json", "w") as h:
        json.dump(config, h)
    write_safetensors(folder + "/model.safetensors", head, b"")
    os.truncate(folder + "/model.safetensors", os.path.getsize(folder + "/model.safetensors") + at)
    n, _ = header(folder + "/model.safetensors")
    with open(folder + "/model.safetensors", "r+b") as h:
        h.seek(8 + n)
        h.write(struct.pack("<4e", 1.5, -2 ** -24, 65504, 0.1))
    few = lambda: resource.setrlimit(resource.RLIMIT_DATA, (40 << 20, 40 << 20))  # noqa: E731
    few = None if os.environ.get("FP8_TEST_SLOWDOWN") else few  # sanitizers keep shadow memory
    large, back = c.home + "/large", c.home + "/large-back"
    i = c.json("ckpt", "import", folder, large, preexec_fn=few)
    check(f"import of {i['parameters']} parameters in little memory", i["parameters"] > 20e6 and i["bytes"] == 4 * i["parameters"], i)
    c.ctl("ckpt", "verify", large, preexec_fn=few)
    said, result = at_terminal(c, "ckpt", "verify", large)
    check(f"a bar on a terminal, taken away at the end: {said!r}"[:150], "\r" in said and "#" in said and "MiB" in said and said.endswith("\r\x1b[K") and "whole" in result, (said, result))
    c.ctl("ckpt", "export", large, back, "--dtype", "fp32", "--shard-mib", "30", preexec_fn=few)
    files = sorted(f for f in os.listdir(back) if f.startswith("model-"))
    n, h = header(f"{back}/{files[0]}")
    with open(f"{back}/{files[0]}", "rb") as f:
        f.seek(8 + n + h["model.embed_tokens.weight"]["data_offsets"][0])
        values = struct.unpack("<4f", f.read(16))
    p = subprocess.Popen([c.build + "/fp8ctl", "ckpt", "import", folder, c.home + "/cut-short"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while p.poll() is None and not any(f.startswith(".cut-short.tmp-") for f in os.listdir(c.home)):
        pass
    p.send_signal(signal.SIGINT)
    said = p.communicate()[1]
    left = [f for f in os.listdir(c.home) if "cut-short" in f]
    check(f"Ctrl-C: {said.strip()}", (p.returncode == 1 and "interrupted" in said and left == []) or (p.returncode == 0 and left == ["cut-short"]), (p.returncode, said, left))
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    check(f"none of them took more than 60 MiB, mapped files included: {most >> 10} MiB", most < 60 << 10 or not few, most)
    check("values of binary16", values == (1.5, -2.0 ** -24, 65504.0, struct.unpack("<e", struct.pack("<e", 0.1))[0]) and len(files) >= 3, (values, files))


def main():
    parts = sys.argv[2:] or ["loss", "bad", "memory", "rm"]
    with Bare(sys.argv[1], nodes=1, devices=4, controller=["--allow-test-hooks"]) as c:
        write_text(c.home + "/text")
        for p in parts:
            {"loss": part_loss, "bad": part_bad, "rm": part_rm, "memory": part_memory}[p](c)


if __name__ == "__main__":
    try:
        main()
    except Failure as e:
        sys.exit(f"ckpt: {e}")
