#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An independent emulation of the FP8 recipes in torch: files as reference_files.py says, in model.json "recipe": bf16, block or tensor; "pow2": cached or all; "micro_batch": sequences
that are quantised together.

Written from the rules (docs/numerics.md), not from the engine: values are rounded, by arithmetic, where the rules say so - to BF16 what is stored, to FP8 under its scales what enters a
Linear's product.  What lies between two roundings is computed in double precision, which makes NAME.grad.f64, and once more in single precision, as engines do: NAME.single.f64.  Both
follow the rules; they differ where a value lies so close to the middle between two of a format that the last bit of a sum decides, and in all that follows from there.  So their distance is
that of two right implementations.
"""
import math

from reference_files import allowed, batch, config, labelled, norm, rotate, tensors_of, torch, weights, write, write_loss

heads, kv_heads, head_dim, recipe = config["heads"], config["kv_heads"], config["head_dim"], config["recipe"]


def bf16(x):
    return x.float().bfloat16().to(torch.get_default_dtype())


def grid(x, mantissa, least, most):
    """x (double) rounded to a float of so many mantissa bits, least normal exponent, greatest value: nearest even, saturating."""
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
    return (q * (1 / s).double()).to(torch.get_default_dtype())


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


class Core(torch.autograd.Function):
    """Attention of every head [.., heads, tokens, D].  The gradient of the softmax takes what it subtracts from every row, sum p dp, as sum out dout of the output that is stored
    (FlashAttention-2, arXiv 2307.08691, section 3.1)."""
    @staticmethod
    def forward(ctx, q, k, v, mask):
        p = torch.softmax((q @ k.mT / math.sqrt(head_dim)).masked_fill(mask, float("-inf")), dim=-1)
        out = bf16(p @ v)
        ctx.save_for_backward(q, k, v, p, out)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, p, out = ctx.saved_tensors
        ds = p * (dout @ v.mT - (out * dout).sum(dim=-1, keepdim=True)) / math.sqrt(head_dim)
        return ds @ k, ds.mT @ q, p.mT @ dout, None


def attention(q, k, v, documents, positions):
    length = len(batch[0]["labels"])  # no document goes over a sequence's end

    def split(x, group):
        """[tokens, heads, D] to [sequences, heads, length, D], each head as often as it is shared."""
        return x.reshape(-1, length, x.shape[1], head_dim).repeat_interleave(group, 2).transpose(1, 2)

    q = Round.apply(rotate(Round.apply(q).reshape(-1, heads, head_dim), positions))
    k = Round.apply(rotate(Round.apply(k).reshape(-1, kv_heads, head_dim), positions))
    v = Round.apply(v).reshape(-1, kv_heads, head_dim)
    mask = torch.stack([~allowed(d) for d in documents.reshape(-1, length)]).unsqueeze(1)
    out = Core.apply(split(q, 1), split(k, heads // kv_heads), split(v, heads // kv_heads), mask)
    return out.transpose(1, 2).reshape(-1, heads * head_dim)


def loss_of(w, ids, labels, documents, positions, scale):
    x = Round.apply(w["model.embed_tokens.weight"][ids])
    for n in range(config["layers"]):
        p = f"model.layers.{n}."
        a, m = p + "self_attn.", p + "mlp."
        y = Store.apply(norm(x, w[p + "input_layernorm.weight"]))
        q, k, v = Linears.apply(y, *[w[a + i + "_proj.weight"] for i in "qkv"])
        x = Round.apply(x + Linears.apply(attention(q, k, v, documents, positions), w[a + "o_proj.weight"])[0])
        y = Store.apply(norm(x, w[p + "post_attention_layernorm.weight"]))
        g, u = Linears.apply(y, w[m + "gate_proj.weight"], w[m + "up_proj.weight"])
        x = Round.apply(x + SwigluDown.apply(g, u, w[m + "down_proj.weight"]))
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return Head.apply(Store.apply(norm(x, w["model.norm.weight"])), head, labels, scale)


def run(suffix):
    w = {name: bf16(x).requires_grad_(True) for name, x in weights().items()}
    size, per = sum(len(s["labels"]) for s in batch), config["micro_batch"]
    loss = 0.0
    for first in range(0, len(batch), per):
        part = loss_of(w, *tensors_of(batch[first:first + per]), 1 / size)
        part.backward()
        loss += part.item() * size / labelled()
    write({name: x.grad.double() * size / labelled() for name, x in w.items()}, suffix)
    return loss


torch.set_default_dtype(torch.float32)
run("single")
torch.set_default_dtype(torch.float64)
write_loss(run("grad"))
