"""The tiles as a Triton kernel: tl.dot, which is mma.sync on most chips and wgmma on Hopper. Imports triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def product(a, b, c, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, DEPTH: tl.constexpr):
    """One program for each tile: a (M, K), b (K, N), c (M, N), row-major; instructions in order from zero."""
    tile = tl.program_id(0).to(tl.int64)
    row, column, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, DEPTH)
    total = tl.zeros((M, N), tl.float32)
    for at in range(0, K, DEPTH):
        left = tl.load(a + tile * M * K + row[:, None] * K + at + inner[None, :])
        right = tl.load(b + tile * K * N + (at + inner[:, None]) * N + column[None, :])
        # Without the last argument, fp8 sums are promoted to fp32 registers now and then.
        total = tl.dot(left, right, total, input_precision="tf32", max_num_imprecise_acc=K)
    tl.store(c + tile * M * N + row[:, None] * N + column[None, :], total)


def run(a: Any, b: Any, c: Any) -> None:
    """torch CUDA tensors a (T, M, K), b (T, K, N) of one type and c (T, M, N) fp32, contiguous; fills c."""
    count, m, k = a.shape
    product[(count,)](a, b, c, M=m, K=k, N=b.shape[2], DEPTH=32)
