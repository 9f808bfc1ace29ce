#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An independent emulation of the FP8 recipes in torch: reads DIR/{model.json, batch.json, NAME.f64}, writes DIR/NAME.grad.f64 and DIR/loss.json.

Written from the rules (docs/numerics.md), not from the engine: everything is computed in double precision on values that were rounded, by arithmetic, where
the rules say so - to BF16 what is stored, to FP8 under its scales what enters a Linear's product.  model.json's "recipe": bf16, block or tensor; "pow2": cached or all;
"micro_batch": sequences that are quantised together.  Exit status 77: no torch here.
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
heads, kv_heads, head_dim, recipe = config["heads"], config["kv_heads"], config["head_dim"], config["recipe"]


def bf16(x):
    return x.float().bfloat16().double()


def grid(x, mantissa, least, most):
    """x rounded to a float of so many mantissa bits, least normal exponent, greatest value: nearest even, saturating."""
    power = (x.view(torch.int64) & (0x7ff << 52)).view(torch.float64)
    step = torch.clamp(power, min=2.0 ** least) * 2.0 ** -mantissa
    return torch.clamp(torch.round(x / step) * step, -most, most)


FORMATS = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}


def scaled(x, amax, fmt, pow2):
    """x as FP8 holds it under the scale that amax (broadcast to x) gives; the scale, its reciprocal and the product are single precision."""
    most = torch.tensor(FORMATS[fmt][2]).float()
    s = torch.where(amax == 0, torch.ones(()).float(), most / amax.float())
    if pow2:
        s = (s.view(torch.int32) & -(1 << 23)).view(torch.float32)
    q = grid((x.float() * s).double(), *FORMATS[fmt])
    return q * (1 / s).double()


def blocks(x, rows, cols):
    """amax of every block of rows x cols, spread over its elements; blocks at the ends may be smaller."""
    down, across = -x.shape[0] % rows, -x.shape[1] % cols
    padded = torch.nn.functional.pad(x.abs(), (0, across, 0, down))
    amax = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // cols, cols).amax(dim=(1, 3))
    return amax.repeat_interleave(rows, 0).repeat_interleave(cols, 1)[:x.shape[0], :x.shape[1]]


def quantized(x, kind, pow2=config["pow2"] == "all"):
    """kind: row, col (an activation for products over columns, over tokens), weight, and the same of a gradient: drow, dcol."""
    if recipe == "bf16":
        return x
    if recipe == "tensor":
        return scaled(x, x.abs().max(), "e5m2" if kind[0] == "d" else "e4m3", pow2)
    shape = {"row": (1, 128), "drow": (1, 128), "col": (128, 1), "dcol": (128, 1), "weight": (128, 128)}[kind]
    return scaled(x, blocks(x, *shape), "e4m3", pow2)


class Round(torch.autograd.Function):
    """Stored in BF16, and its gradient too."""
    @staticmethod
    def forward(ctx, x):
        return bf16(x)

    @staticmethod
    def backward(ctx, g):
        return bf16(g)


class Store(torch.autograd.Function):
    """Stored in BF16; the gradient is passed on as it is."""
    @staticmethod
    def forward(ctx, x):
        return bf16(x)

    @staticmethod
    def backward(ctx, g):
        return g


class Linears(torch.autograd.Function):
    """Products of one input with several weights; what they give back to the input is added up before it is rounded."""
    @staticmethod
    def forward(ctx, x, *ws):
        wq = [quantized(w, "weight") for w in ws]
        ctx.save_for_backward(x, *wq)
        row = quantized(x, "row")
        return tuple(bf16(row @ w.T) for w in wq)

    @staticmethod
    def backward(ctx, *dys):
        x, *wq = ctx.saved_tensors
        dx = sum(quantized(dy, "drow") @ w for dy, w in zip(dys, wq))
        col = quantized(x, "col")
        return (bf16(dx), *[quantized(dy, "dcol").T @ col for dy in dys])


class SwigluDown(torch.autograd.Function):
    """silu(g) * u and the product behind it.  Recipe block keeps g and u in FP8, scales powers of two, and makes the rest again from those."""
    @staticmethod
    def act(g, u):
        return bf16(g * torch.sigmoid(g) * u)

    @staticmethod
    def forward(ctx, g, u, w):
        wq = quantized(w, "weight")
        a = SwigluDown.act(g, u)
        y = bf16(quantized(a, "row") @ wq.T)
        if recipe == "block":
            g, u = bf16(quantized(g, "row", True)), bf16(quantized(u, "row", True))
            a = SwigluDown.act(g, u)
        ctx.save_for_backward(g, u, a, wq)
        return y

    @staticmethod
    def backward(ctx, dy):
        g, u, a, wq = ctx.saved_tensors
        da = bf16(quantized(dy, "drow") @ wq)
        dw = quantized(dy, "dcol").T @ quantized(a, "col")
        s = torch.sigmoid(g)
        return bf16(da * u * s * (1 + g * (1 - s))), bf16(da * g * s), dw


class Head(torch.autograd.Function):
    """Sum of the labelled tokens' losses times `scale`; the logits' gradient is stored in BF16."""
    @staticmethod
    def forward(ctx, y, w, labels, scale):
        logits = y @ w.T
        has = labels >= 0
        p = torch.log_softmax(logits, dim=1)
        d = p.exp()
        d[has, labels[has]] -= 1
        d[~has] = 0
        ctx.save_for_backward(y, w, bf16(d * scale))
        return -p[has, labels[has]].sum() * scale

    @staticmethod
    def backward(ctx, g):
        y, w, d = ctx.saved_tensors
        return bf16(d @ w), d.T @ y, None, None


def norm(x, w):
    return Store.apply(x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + config["eps"]) * w[0])


def rotate(x, positions):
    """x [T, heads, D]"""
    half = head_dim // 2
    frequency = torch.tensor([config["theta"] ** (-2.0 * i / head_dim) for i in range(half)])
    angle = positions[:, None].double() * frequency[None, :]
    cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q, k, v, documents, positions):
    tokens = q.shape[0]
    q = Round.apply(rotate(Round.apply(q).reshape(tokens, heads, head_dim), positions))
    k = Round.apply(rotate(Round.apply(k).reshape(tokens, kv_heads, head_dim), positions))
    v = Round.apply(v).reshape(tokens, kv_heads, head_dim)
    order = torch.arange(tokens)
    allowed = (order[:, None] >= order[None, :]) & (documents[:, None] == documents[None, :])
    outs = []
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = (q[:, h] @ k[:, g].T) / math.sqrt(head_dim)
        outs.append(torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=1) @ v[:, g])
    return Round.apply(torch.cat(outs, dim=1))


def loss_of(weights, ids, labels, documents, positions, scale):
    x = Round.apply(weights["model.embed_tokens.weight"][ids])
    for n in range(config["layers"]):
        p = f"model.layers.{n}."
        a, m = p + "self_attn.", p + "mlp."
        y = norm(x, weights[p + "input_layernorm.weight"])
        q, k, v = Linears.apply(y, *[weights[a + i + "_proj.weight"] for i in "qkv"])
        x = Round.apply(x + Linears.apply(attention(q, k, v, documents, positions), weights[a + "o_proj.weight"])[0])
        y = norm(x, weights[p + "post_attention_layernorm.weight"])
        g, u = Linears.apply(y, weights[m + "gate_proj.weight"], weights[m + "up_proj.weight"])
        x = Round.apply(x + SwigluDown.apply(g, u, weights[m + "down_proj.weight"]))
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return Head.apply(norm(x, weights["model.norm.weight"]), head, labels, scale)


def main():
    weights = {}
    for name, (rows, cols) in config["tensors"].items():
        storage = torch.from_file(f"{folder}/{name}.f64", shared=False, size=rows * cols, dtype=torch.float64)
        weights[name] = bf16(storage.clone().reshape(rows, cols)).requires_grad_(True)
    size, per = sum(len(s["labels"]) for s in batch), config["micro_batch"]
    labelled = sum(x >= 0 for s in batch for x in s["labels"])
    loss = 0.0
    for first in range(0, len(batch), per):
        ids, labels, documents, positions = [], [], [], []
        for s in batch[first:first + per]:
            for i, (token, label) in enumerate(zip(s["ids"], s["labels"])):
                begin = max(b for b in s["starts"] if b <= i)
                documents.append(len(ids) - (i - begin))
                positions.append(i - begin)
                ids.append(token)
                labels.append(label)
        part = loss_of(weights, *[torch.tensor(t) for t in (ids, labels, documents, positions)], 1 / size)
        part.backward()
        loss += part.item() * size / labelled
    for name, w in weights.items():
        with open(f"{folder}/{name}.grad.f64", "wb") as f:
            f.write((w.grad * size / labelled).contiguous().numpy().tobytes())
    with open(f"{folder}/loss.json", "w") as f:
        json.dump({"loss": loss}, f)


main()
