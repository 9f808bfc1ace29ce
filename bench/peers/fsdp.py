#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Peer of bench/node: torch FSDP2 (fully_shard) with llama-1b's model, BF16 compute, FP32 master weights and moments, torch.compile, 4 sequences of 4,096 a GPU and step.

`python3 -m torch.distributed.run --nproc_per_node=N fsdp.py`; rank 0 prints {"tokens_per_s": ..., "ms": ..., "loss": ...} as its last line.
"""
import json
import os
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

WIDTH, LAYERS, HEADS, INNER, VOCAB, SEQ, SEQS = 2048, 24, 16, 5632, 32000, 4096, 4
WARM, STEPS = 5, 15


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before_attention, self.before_mlp = nn.RMSNorm(WIDTH, eps=1e-5), nn.RMSNorm(WIDTH, eps=1e-5)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)

        def turned(z):
            low, high = z.chunk(2, -1)
            return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, WIDTH))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-5), nn.Linear(WIDTH, VOCAB, bias=False)
        size = WIDTH // HEADS
        angle = torch.outer(torch.arange(SEQ, dtype=torch.float32), 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size))
        self.register_buffer("cos", angle.cos().bfloat16(), persistent=False)
        self.register_buffer("sin", angle.sin().bfloat16(), persistent=False)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).float().view(-1, VOCAB), targets.view(-1))


def main():
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl")
    torch.manual_seed(0)
    model = Model().cuda()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        block.compile()
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    torch.manual_seed(1 + rank)
    tokens = torch.randint(VOCAB, (SEQS, SEQ + 1), device="cuda")
    times = []
    for _ in range(WARM + STEPS):
        torch.cuda.synchronize()
        dist.barrier()
        began = time.perf_counter()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    seconds = sorted(times[WARM:])[STEPS // 2]
    if rank == 0:
        print(json.dumps({"tokens_per_s": SEQS * SEQ * dist.get_world_size() / seconds, "ms": seconds * 1e3, "loss": loss.item()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
