#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An independent Llama in torch with autograd: files as reference_files.py says.

Written from the model's description (RMSNorm, RoPE with rotated halves, grouped-query attention inside documents, SwiGLU), one sequence at a time,
in double precision, with explicit masks: nothing of the engine's way of doing it.
"""
import math

from reference_files import allowed, batch, config, labelled, norm, rotate, tensors_of, torch, weights, write, write_loss

torch.set_default_dtype(torch.float64)
w = {name: x.requires_grad_(True) for name, x in weights().items()}
heads, kv_heads, head_dim = config["heads"], config["kv_heads"], config["head_dim"]


def attention(x, prefix, documents, positions):
    tokens = x.shape[0]
    q = rotate((x @ w[prefix + "q_proj.weight"].T).reshape(tokens, heads, head_dim), positions)
    k = rotate((x @ w[prefix + "k_proj.weight"].T).reshape(tokens, kv_heads, head_dim), positions)
    v = (x @ w[prefix + "v_proj.weight"].T).reshape(tokens, kv_heads, head_dim)
    mask, outs = ~allowed(documents), []
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = (q[:, h] @ k[:, g].T) / math.sqrt(head_dim)
        outs.append(torch.softmax(scores.masked_fill(mask, float("-inf")), dim=1) @ v[:, g])
    return torch.cat(outs, dim=1) @ w[prefix + "o_proj.weight"].T


def forward(ids, documents, positions):
    x = w["model.embed_tokens.weight"][ids]
    for n in range(config["layers"]):
        p = f"model.layers.{n}."
        x = x + attention(norm(x, w[p + "input_layernorm.weight"]), p + "self_attn.", documents, positions)
        y = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = y @ w[p + "mlp.gate_proj.weight"].T, y @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"]) @ head.T


total = torch.zeros(())
for sequence in batch:
    ids, labels, documents, positions = tensors_of([sequence])
    logits = torch.log_softmax(forward(ids, documents, positions), dim=1)
    has = labels >= 0
    total = total - logits[has, labels[has]].sum()
loss = total / labelled()
loss.backward()
write({name: x.grad for name, x in w.items()}, "grad")
write_loss(loss.item())
