#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The peer of bench/recovery: a byte-level transformer of about 1.3M parameters under torch DDP (gloo), started by torchrun.

Every rank appends {"t", "what", "rank", "pid", "life", "step"} to $OUT/events; a checkpoint is written every ten steps.
"""
import json
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as fn

OUT = os.environ["OUT"]
RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
LIFE = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
HIDDEN, HEADS, LAYERS, SEQ, BATCH = 128, 4, 6, 128, 2
log = open(f"{OUT}/events", "a", buffering=1)


def note(what, step=0):
    log.write(json.dumps({"t": time.time(), "what": what, "rank": RANK, "pid": os.getpid(), "life": LIFE, "step": step}) + "\n")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.tokens, self.places = nn.Embedding(256, HIDDEN), nn.Embedding(SEQ, HIDDEN)
        self.layers = nn.TransformerEncoder(layer, LAYERS)
        self.head = nn.Linear(HIDDEN, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(SEQ), persistent=False)

    def forward(self, ids):
        return self.head(self.layers(self.tokens(ids) + self.places.weight, self.mask))


torch.set_num_threads(1)
torch.manual_seed(1)
note("start")
dist.init_process_group("gloo")
text = torch.tensor(list(open("/usr/share/common-licenses/GPL-3", "rb").read()))
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
saved = f"{OUT}/checkpoint"
step = 0
if os.path.exists(saved):
    s = torch.load(saved)
    model.load_state_dict(s["model"])
    optimizer.load_state_dict(s["optimizer"])
    step = s["step"]
parallel = nn.parallel.DistributedDataParallel(model)
while True:
    at = torch.randint(len(text) - SEQ - 1, (BATCH,), generator=torch.Generator().manual_seed(step * WORLD + RANK))
    ids = torch.stack([text[i:i + SEQ + 1] for i in at])
    optimizer.zero_grad()
    fn.cross_entropy(parallel(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    step += 1
    if RANK == 0:
        note("step", step)
        if step % 10 == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, saved + ".new")
            os.replace(saved + ".new", saved)
