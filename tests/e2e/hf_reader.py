#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`hf_reader.py DIR TEXT SEQ_LEN DOCUMENTS`: reads a Hugging Face folder of a Llama model without any of this project's code, and prints as JSON the mean loss a token of the last
DOCUMENTS documents of TEXT (bytes; blocks between blank lines; id 0 ends one), each cut into sequences of SEQ_LEN that start anew at position 0.

Double precision, full matrices, one sequence at a time. Where transformers is there, its logits for the first sequence are compared with ours.  Exit status 77: no numpy here."""
import json
import os
import struct
import sys

try:
    import numpy as np
except ImportError:
    sys.exit(77)


def tensors_of(path):
    with open(path, "rb") as h:
        data = h.read()
    n = struct.unpack("<Q", data[:8])[0]
    for name, t in json.loads(data[8:8 + n]).items():
        if name == "__metadata__":
            continue
        raw = data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]]
        if t["dtype"] == "BF16":
            a = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            a = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[t["dtype"]])
        yield name, a.reshape(t["shape"]).astype(np.float64)


def read(folder):
    with open(folder + "/config.json") as h:
        config = json.load(h)
    index = folder + "/model.safetensors.index.json"
    if os.path.exists(index):
        with open(index) as h:
            where = json.load(h)["weight_map"]
        weights = {n: a for f in sorted(set(where.values())) for n, a in tensors_of(f"{folder}/{f}") if where[n] == f}
        assert sorted(weights) == sorted(where), "the index names other tensors than the files hold"
    else:
        weights = dict(tensors_of(folder + "/model.safetensors"))
    return config, weights


def norm(x, w, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * w


def rotate(x, theta):
    """[T, heads, D]: transformers' rotate_half."""
    t, _, d = x.shape
    angle = np.arange(t)[:, None] * theta ** (-np.arange(0, d, 2) / d)[None, :]
    cos, sin = np.concatenate([np.cos(angle)] * 2, axis=1)[:, None, :], np.concatenate([np.sin(angle)] * 2, axis=1)[:, None, :]
    half = np.concatenate([-x[..., d // 2:], x[..., :d // 2]], axis=-1)
    return x * cos + half * sin


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def logits(config, w, ids):
    heads, kv, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, t = config["rms_norm_eps"], len(ids)
    x = w["model.embed_tokens.weight"][ids]
    mask = np.triu(np.full((t, t), -np.inf), 1)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"], eps)
        q = rotate((h @ w[p + "self_attn.q_proj.weight"].T).reshape(t, heads, d), config["rope_theta"])
        k = rotate((h @ w[p + "self_attn.k_proj.weight"].T).reshape(t, kv, d), config["rope_theta"])
        v = (h @ w[p + "self_attn.v_proj.weight"].T).reshape(t, kv, d)
        k, v = np.repeat(k, heads // kv, axis=1), np.repeat(v, heads // kv, axis=1)
        a = softmax(np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d) + mask)
        x = x + np.einsum("hqk,khd->qhd", a, v).reshape(t, heads * d) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"], eps)
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(x, w["model.norm.weight"], eps) @ head.T


def compare_transformers(folder, ids, ours):
    try:
        import transformers  # first: without it nobody waits for the other
        import torch
    except ImportError:
        return None
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    assert type(model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].double().numpy()
    return float(np.abs(theirs - ours).max())


def main():
    folder, text, seq_len, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    config, w = read(folder)
    with open(text, "rb") as h:
        documents = [list(d) + [0] for d in h.read().strip(b"\n").split(b"\n\n")]
    total, count, gap = 0.0, 0, None
    for d in documents[-n:]:
        for at in range(0, len(d) - 1, seq_len):
            ids = d[at:at + seq_len + 1]
            y = logits(config, w, ids[:-1])
            if count == 0:
                gap = compare_transformers(folder, ids[:-1], y)
            p = softmax(y)
            total -= np.log(p[np.arange(len(ids) - 1), ids[1:]]).sum()
            count += len(ids) - 1
    print(json.dumps({"loss": total / count, "tokens": count, "transformers_gap": gap}))


if __name__ == "__main__":
    main()
