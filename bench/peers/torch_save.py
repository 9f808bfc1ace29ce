#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""torch.save of PARAMETERS float32 values and two Adam moments each: usage torch_save.py DIR PARAMETERS REPEATS

Prints two medians, a line each, in ms: the call of torch.save (what training waits for), and until the file is durable (fsync, rename).
"""
import os
import sys
import time

import torch

folder, parameters, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
n = parameters // 48
model = [torch.randn(n).requires_grad_() for _ in range(48)]
adam = torch.optim.Adam(model)
for p in model:
    p.grad = torch.zeros_like(p)
adam.step()
call, durable = [], []
path = os.path.join(folder, "torch.pt")
for _ in range(repeats):
    os.sync()
    t = time.monotonic()
    with open(path + ".tmp", "wb") as f:
        torch.save({"model": [p.detach() for p in model], "adam": adam.state_dict(), "step": 1}, f)
        call.append(time.monotonic() - t)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)
    durable.append(time.monotonic() - t)
os.remove(path)
for times in (call, durable):
    print(f"{sorted(times)[repeats // 2] * 1e3:.3f}")
