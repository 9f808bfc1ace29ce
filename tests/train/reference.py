#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An independent Llama in torch with autograd: reads DIR/{model.json, batch.json, NAME.f64}, writes DIR/NAME.grad.f64 and DIR/loss.json.

Written from the model's description (RMSNorm, RoPE with rotated halves, grouped-query attention inside documents, SwiGLU), one sequence at a time,
in double precision, with explicit masks: nothing of the engine's way of doing it.  Exit status 77: no torch here.
"""
import json
import math
import sys

try:
    import torch
except ImportError:
    sys.exit(77)

folder = sys.argv[1]
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


def load(name):
    with open(f"{folder}/{name}") as f:
        return json.load(f)


config, batch = load("model.json"), load("batch.json")
weights = {}
for name, (rows, cols) in config["tensors"].items():
    storage = torch.from_file(f"{folder}/{name}.f64", shared=False, size=rows * cols, dtype=torch.float64)
    weights[name] = storage.clone().reshape(rows, cols).requires_grad_(True)
heads, kv_heads, head_dim = config["heads"], config["kv_heads"], config["head_dim"]


def norm(x, w):
    return x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + config["eps"]) * w[0]


def rotate(x, positions):
    """x [T, heads, D]"""
    half = head_dim // 2
    frequency = torch.tensor([config["theta"] ** (-2.0 * i / head_dim) for i in range(half)])
    angle = positions[:, None].double() * frequency[None, :]
    cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(x, prefix, documents, positions):
    tokens = x.shape[0]
    q = rotate((x @ weights[prefix + "q_proj.weight"].T).reshape(tokens, heads, head_dim), positions)
    k = rotate((x @ weights[prefix + "k_proj.weight"].T).reshape(tokens, kv_heads, head_dim), positions)
    v = (x @ weights[prefix + "v_proj.weight"].T).reshape(tokens, kv_heads, head_dim)
    order = torch.arange(tokens)
    allowed = (order[:, None] >= order[None, :]) & (documents[:, None] == documents[None, :])
    outs = []
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = (q[:, h] @ k[:, g].T) / math.sqrt(head_dim)
        outs.append(torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=1) @ v[:, g])
    return torch.cat(outs, dim=1) @ weights[prefix + "o_proj.weight"].T


def forward(ids, documents, positions):
    x = weights["model.embed_tokens.weight"][ids]
    for n in range(config["layers"]):
        p = f"model.layers.{n}."
        x = x + attention(norm(x, weights[p + "input_layernorm.weight"]), p + "self_attn.", documents, positions)
        y = norm(x, weights[p + "post_attention_layernorm.weight"])
        gate, up = y @ weights[p + "mlp.gate_proj.weight"].T, y @ weights[p + "mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ weights[p + "mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, weights["model.norm.weight"]) @ head.T


total, labelled = torch.zeros(()), 0
for sequence in batch:
    ids, labels, starts = torch.tensor(sequence["ids"]), sequence["labels"], sequence["starts"]
    documents = torch.tensor([sum(s <= i for s in starts) for i in range(len(labels))])
    positions = torch.tensor([i - max(s for s in starts if s <= i) for i in range(len(labels))])
    logits = torch.log_softmax(forward(ids, documents, positions), dim=1)
    for i, label in enumerate(labels):
        if label >= 0:
            total = total - logits[i, label]
            labelled += 1
loss = total / labelled
loss.backward()
for name, w in weights.items():
    with open(f"{folder}/{name}.grad.f64", "wb") as f:
        f.write(w.grad.contiguous().numpy().tobytes())
with open(f"{folder}/loss.json", "w") as f:
    json.dump({"loss": loss.item()}, f)
