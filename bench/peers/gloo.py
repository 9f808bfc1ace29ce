#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Collectives of torch.distributed (gloo) between N processes of this machine: usage gloo.py N BYTES...

Prints one figure a line, milliseconds a call: all-reduce, reduce-scatter (gloo has none: 0), all-gather, each for every size. The method is bench/collectives.c's.
"""
import os
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def measure(fn, size):
    calls = 2 if size >= 8 << 20 else 40 if size >= 65536 else 200
    fn()
    ms = []
    for _ in range(5):
        dist.barrier()
        t = time.monotonic()
        for _ in range(calls):
            fn()
        dist.barrier()
        ms.append((time.monotonic() - t) * 1e3 / calls)
    return sorted(ms)[2]


def rank_main(rank, n, sizes, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=n)
    out = []
    for size in sizes:
        a = torch.zeros(size // 4)
        out.append(measure(lambda: dist.all_reduce(a), size))
    out += [0.0] * len(sizes)
    for size in sizes:
        a = torch.zeros(size // 4 // n)
        b = [torch.zeros(size // 4 // n) for _ in range(n)]
        out.append(measure(lambda: dist.all_gather(b, a), size))
    if rank == 0:
        print("\n".join(f"{x:.6f}" for x in out), flush=True)
    dist.barrier()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    n_ranks, byte_sizes = int(sys.argv[1]), [int(x) for x in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as d:
        mp.spawn(rank_main, (n_ranks, byte_sizes, os.path.join(d, "meet")), nprocs=n_ranks)
