"""How fast is a virtual matrix unit? GMAC/s of `hspi.numerics.matmul` as a share of PyTorch's fp32 matmul, same run.

python benchmarks/bench_matmul.py [--quick] [--threads 2] [--only ampere-bf16,cdna3-fp16]

Shapes are 512³ and scaled-down decoder layers; weights are packed once, as a served model would. One thread unless
told otherwise. Each figure is the best of several rounds, PyTorch's and ours in turn. One thread is timed by its own
processor time, so that others on the machine count little; several threads by the clock, which needs free cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from hspi.numerics.architectures import UNITS
from hspi.numerics.formats import round_to
from hspi.numerics.matmul import matmul, pack_b

Shape = tuple[int, int, int]
SHAPES: dict[str, Shape] = {
    "512³": (512, 512, 512),
    "32×1024×1024": (32, 1024, 1024),
    "128×1024×2816": (128, 1024, 2816),
}
TARGETS = {"cdna1": 0.18, "cdna2": 0.18, "cdna3": 0.07}


def target(architecture: str, input_type: str) -> float:
    return TARGETS.get(architecture, 0.07 if input_type == "e4m3" else 0.08)


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    start = clock()
    call()
    return clock() - start


def measure(name: tuple[str, str], shape: Shape, rounds: int, threads: int) -> tuple[float, float, float]:
    """GMAC/s of ours and of PyTorch on one thread, and how much faster `threads` are."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    fmt = UNITS[name].format
    a, b = round_to(rng.normal(size=(m, k)), fmt), round_to(rng.normal(size=(k, n)), fmt)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    packed = pack_b(b, *name)
    ours, theirs, one, many = [], [], [], []
    for _ in range(rounds + 1):
        theirs.append(seconds(lambda: x @ y))
        ours.append(seconds(lambda: matmul(a, packed, *name)))
        if threads > 1:
            one.append(seconds(lambda: matmul(a, packed, *name), time.perf_counter))
            many.append(seconds(lambda: matmul(a, packed, *name, threads=threads), time.perf_counter))
    work = m * k * n / 1e9
    return work / min(ours[1:]), work / min(theirs[1:]), min(one[1:]) / min(many[1:]) if many else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, few rounds")
    parser.add_argument("--threads", type=int, default=1, help="also measure this many threads")
    parser.add_argument("--only", default="", help="comma-separated architecture-type names")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = set(filter(None, options.only.split(",")))
    shapes = dict(list(SHAPES.items())[: 1 if options.quick else None])
    print(f"{'unit':18} {'shape':>14} {'GMAC/s':>8} {'PyTorch':>8} {'share':>7} {'target':>7} {'threads':>8}")
    for name in UNITS:
        label = "-".join(name)
        if wanted and label not in wanted:
            continue
        for title, shape in shapes.items():
            ours, theirs, gain = measure(name, shape, 3 if options.quick else 7, options.threads)
            share = ours / theirs
            speedup = f"{gain:.2f}×" if gain else ""
            verdict = "" if share >= target(*name) else "  below target"
            figures = f"{ours:8.2f} {theirs:8.1f} {share:7.3f} {target(*name):7.2f}"
            print(f"{label:18} {title:>14} {figures} {speedup:>8}{verdict}", flush=True)


if __name__ == "__main__":
    main()
