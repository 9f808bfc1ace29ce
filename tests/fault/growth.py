# SPDX-License-Identifier: Apache-2.0
"""What processes hold, sampled from /proc, and whether it grows: within their lives and from one life to the next. For soak.py."""
import os
import statistics

# kind of value -> growth that is let pass. A leak of one small block a fault or a job is above it within two hours; what allocators and caches do to a steady process is below.
BOUNDS = {"memory_kib": 4096, "fds": 4, "threads": 4, "mapped_kib": 32768}
STORE_BOUND_KIB = 8192
LOG_BOUND_KIB_PER_FAULT = 64
SAMPLES_MIN, LIVES_MIN = 6, 5  # fewer show no slope


def of_process(pid):
    """{value: n} of a process; None when it is gone. Memory is what is its own; mapped is its proportional share of all, shared segments too."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as h:
            smaps = dict(line.split(":", 1) for line in h.read().splitlines()[1:])
        with open(f"/proc/{pid}/status") as h:
            status = dict(line.split(":", 1) for line in h.read().splitlines())
        return {"memory_kib": int(smaps["Pss_Anon"].split()[0]), "mapped_kib": int(smaps["Pss"].split()[0]), "fds": len(os.listdir(f"/proc/{pid}/fd")), "threads": int(status["Threads"])}
    except (OSError, KeyError, ValueError):
        return None


def size_kib(path):
    """Bytes on the disk below path, in KiB."""
    total = 0
    for folder, _, files in os.walk(path):
        for f in files:
            try:
                total += os.lstat(os.path.join(folder, f)).st_blocks
            except OSError:
                pass
    return total // 2


def fit(points):
    """Least squares through (t, value): slope a second and its standard error."""
    n = len(points)
    mt, mv = sum(t for t, _ in points) / n, sum(v for _, v in points) / n
    spread = sum((t - mt) ** 2 for t, _ in points)
    if n < 3 or spread == 0:
        return 0.0, 0.0
    slope = sum((t - mt) * (v - mv) for t, v in points) / spread
    rest = sum((v - mv - slope * (t - mt)) ** 2 for t, v in points)
    return slope, (rest / (n - 2) / spread) ** 0.5


class Samples:
    """Of all processes: kind -> life -> [(t, {value: n})]."""
    def __init__(self, warm_s):
        self.kinds, self.warm_s = {}, warm_s

    def add(self, kind, life, t, values):
        if values:
            self.kinds.setdefault(kind, {}).setdefault(life, []).append((t, values))

    def settled(self, kind, value):
        """Each life's points after its warm-up."""
        out = []
        for points in self.kinds[kind].values():
            kept = [(t, v[value]) for t, v in points if t - points[0][0] >= self.warm_s]
            if kept:
                out.append(kept)
        return out

    def judge(self, kind, value):
        """One row: what it held, its growth over the longest life and over all lives, and whether each is within the bound."""
        lives = self.settled(kind, value)
        every = [v for life in lives for _, v in life]
        row = {"kind": kind, "what": value, "lives": len(self.kinds[kind]), "samples": len(every), "median": None, "max": None, "within": None, "over": None, "bound": BOUNDS[value], "ok": True}
        if not every:
            return row
        row["median"], row["max"] = statistics.median(every), max(every)
        # One slope for all lives, each from its own middle.
        long = [life for life in lives if len(life) >= SAMPLES_MIN]
        if long:
            middles = [(sum(t for t, _ in life) / len(life), sum(v for _, v in life) / len(life)) for life in long]
            slope, error = fit([(t - mt, v - mv) for life, (mt, mv) in zip(long, middles) for t, v in life])
            span = max(life[-1][0] - life[0][0] for life in long)
            row["within"] = round(slope * span, 1)
            row["ok"] &= row["within"] <= BOUNDS[value] or slope <= 2 * error
        if len(lives) >= LIVES_MIN:
            levels = [(life[0][0], statistics.median(v for _, v in life[:5])) for life in lives]
            slope, error = fit(levels)
            row["over"] = round(slope * (levels[-1][0] - levels[0][0]), 1) if levels[-1][0] > levels[0][0] else 0.0
            row["ok"] &= row["over"] <= BOUNDS[value] or slope <= 2 * error
        return row

    def rows(self):
        return [self.judge(kind, value) for kind in sorted(self.kinds) for value in BOUNDS]
