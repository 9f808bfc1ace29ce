# SPDX-License-Identifier: Apache-2.0
"""Replica memory of living processes (proto/replica.h), seen and damaged from outside through /proc/PID/fd."""
import glob
import mmap
import os
import struct

HEADER, SLOT, SLOTS, LAYOUT = 48, 344, 4, 256
RANK_FD = "5"  # worker/rank/session.h


def segments(pid):
    """Paths of the segments that a process holds open, each once."""
    found = {}
    for f in glob.glob(f"/proc/{pid}/fd/*"):
        try:
            if "fp8-replica" in os.readlink(f):
                found[os.stat(f).st_ino] = f
        except FileNotFoundError:
            continue
    return list(found.values())


def slots(m):
    """(rank, step, offset, bytes) of each valid slot of a mapped segment, and how many slots it has."""
    n = struct.unpack_from("<Q", m, 24)[0]
    for i in range(min(n, SLOTS)):
        at = HEADER + i * SLOT
        valid, step, _, _, rank, _, size = struct.unpack_from("<7Q", m, at)
        offset = struct.unpack_from("<Q", m, at + 9 * 8 + LAYOUT)[0]
        if valid:
            yield rank, step, offset, size


def flip(path, wanted=lambda rank, n_slots: True):
    """Flips a bit in the middle of every snapshot of a segment that is wanted; (rank, step) of each."""
    hurt = []
    with open(path, "r+b") as h, mmap.mmap(h.fileno(), os.fstat(h.fileno()).st_size) as m:
        n = struct.unpack_from("<Q", m, 24)[0]
        for rank, step, offset, size in slots(m):
            if wanted(rank, n):
                m[offset + size // 2] ^= 0x20
                hurt.append((rank, step))
    return hurt
