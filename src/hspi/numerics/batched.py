"""Many small products of one shape, such as the heads of an attention layer: packed together, run one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError
from hspi.numerics.architectures import unit
from hspi.numerics.matmul import (
    DEFAULT_PLAN,
    Matrix,
    Packed,
    _compiled,
    _kernel,
    _pack,
    _rows,
    guarded,
    multiply,
)
from hspi.numerics.plans import KernelPlan, combine, schedule


def matmul_batched(
    a: npt.NDArray[np.float32],
    b: npt.NDArray[np.float32],
    architecture: str,
    input_type: str,
    plan: KernelPlan = DEFAULT_PLAN,
) -> Matrix:
    """(B, M, K)·(B, K, N) → float32 (B, M, N), the bits of `matmul` on each item; one thread.

    a, b: float32 whose values are exact in the input type. Raises as `matmul` does.
    """
    if a.ndim != 3 or b.ndim != 3 or (a.shape[0], a.shape[2]) != b.shape[:2]:
        raise DataError(f"a (B, M, K) and b (B, K, N) must share B and K, but got {a.shape} and {b.shape}")
    record, kernels = unit(architecture, input_type), _compiled()
    count, m, k = a.shape
    n = b.shape[2]
    if not a.size or not b.size:
        return np.zeros((count, m, n), np.float32)
    # Each item starts at a block of its own in A and at a panel of its own in B.
    tall, wide = -m % kernels.ROWS, -n % kernels.WIDTH
    rows = np.pad(a, ((0, 0), (0, tall), (0, 0))).reshape(-1, k)
    columns = np.pad(b, ((0, 0), (0, 0), (0, wide))).transpose(1, 0, 2).reshape(k, -1)
    left = _pack(np.ascontiguousarray(rows, np.float32), record, plan, rows=True)
    right = _pack(np.ascontiguousarray(columns, np.float32), record, plan, rows=False)
    if plan.promote or not guarded(left, right):
        return np.stack([multiply(x, y, record, plan=plan) for x, y in zip(a, b, strict=True)])
    lengths = [sum(map(len, segments)) for segments in schedule(plan, k, record.instruction_k)]
    blocks, panels = (m + tall) // kernels.ROWS, (n + wide) // kernels.WIDTH
    run = _kernel(record, plan, True)
    partials = [np.zeros((count, panels, m, kernels.WIDTH), np.float32) for _ in lengths]
    for i in range(count):
        item = (*_part(left, i, blocks), *_part(right, i, panels))
        at = 0
        for total, length in zip(partials, lengths, strict=True):
            if length:
                run(*item, total[i], 0, panels, 0, blocks, at, at + length)
            at += length
    result = np.stack([_rows(x, n) for x in combine(partials, plan)])
    return np.ascontiguousarray(result)


def _part(packed: Packed, i: int, size: int) -> tuple[Matrix, npt.NDArray[np.int16]]:
    at = slice(i * size, (i + 1) * size)
    return packed.values[at], packed.exponents[at]
