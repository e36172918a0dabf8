"""Source of the fast kernels: one function for each unit and step length, unrolled over a step's products.

Exact only behind the guard of `matmul.guarded`: then no exponent leaves fp32's normal range, a zero operand never sets
the step's exponent, and the float → int32 conversion *is* the truncation of the specification. Generated, because the
unrolled form lets LLVM keep a whole step of a vector of columns in registers. Every integer result is cast back to
its narrow type; otherwise numba widens it to 64 bits and halves the lanes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from hspi.numerics.architectures import Unit
from hspi.numerics.kernels import NEAR_ZERO, ROWS, WIDTH, compiled

INT32_LIMIT = (1 << 31) - 1
FUSED = 16  # products of a pass over the columns, at least


def power(exponent: str) -> str:
    """Expression for 2^exponent as fp32, from an int32 expression in fp32's normal range."""
    return f"np.int32(np.int32({exponent} + np.int32(127)) << np.int32(23)).view(np.float32)"


def integer(terms: list[str]) -> str:
    """Sum of int32 expressions that stays int32."""
    total = terms[0]
    for term in terms[1:]:
        total = f"np.int32({total} + {term})"
    return total


def truncated(products: range, scale: str) -> str:
    """Σ of the step's products, scaled and truncated, int32."""
    return integer([f"np.int32((a{q} * b[{q * WIDTH} + j]) * {scale})" for q in products])


def largest_exponents(target: int, products: range) -> list[str]:
    """One pass over the columns, in int16 lanes, into row `target` of the buffer `em`."""
    first, *rest = (f"np.int16(x{q} + y[{q * WIDTH} + j])" for q in products)
    return [f"m = {first}", *(f"m = max(m, {term})" for term in rest), f"em[{target * WIDTH} + j] = m"]


# Exponents below −100 only occur where every term is a multiple of a power of two that −100 keeps (see the guard),
# and fp32 cannot hold their scale.
ACCUMULATOR_EXPONENT = [
    "field = np.int32(np.int32(np.float32(c).view(np.int32) >> np.int32(23)) & np.int32(255))",
    "ec = np.int32(max(field, np.int32(27)) - np.int32(127))",
]


def truncating_body(unit: Unit, products: range, row: int) -> list[str]:
    """NVIDIA: scaled integer sums, then truncation back to fp32."""
    term = 1 << (unit.fraction + 2)  # a product is below 4·2^F
    parts = 1 if len(products) * term <= INT32_LIMIT + 1 else 2
    half = len(products) // parts
    sums = [truncated(products[h * half : (h + 1) * half], "t") for h in range(parts)]
    sums.append("np.int32(c * t)")
    if parts == 1 and len(products) * term + term // 2 <= INT32_LIMIT + 1:
        # With the half-bit below 24 bits cleared, rounding to nearest is truncation: bits of a >> 24 mark it.
        mask = f" & np.int32({-(1 << (23 - unit.result_bits))})" if unit.result_bits < 23 else ""
        rounded = [
            f"s = {integer(sums)}",
            "a = np.int32(abs(s))",
            "a = np.int32(a & np.int32(~np.int32(a >> np.int32(24))))",
            f"bits = np.int32(np.float32(a).view(np.int32){mask})",
            "r = np.int32(bits | np.int32(s & np.int32(-2147483648))).view(np.float32)",
        ]
    else:
        mask = f"np.int64({-(1 << (52 - unit.result_bits))})"
        rounded = [
            "d = " + " + ".join(f"np.float64({s})" for s in sums),
            f"r = np.float32(np.int64(np.float64(d).view(np.int64) & {mask}).view(np.float64))",
        ]
    return [
        f"e = max(np.int32(em[{row * WIDTH} + j]), ec)",
        f"t = {power(f'np.int32(np.int32({unit.fraction}) - e)')}",
        *rounded,
        f"c = np.float32(r * {power(f'np.int32(e - np.int32({unit.fraction}))')})",
    ]


def two_stage_body(unit: Unit, products: range, row: int) -> list[str]:
    """CDNA3: integer product sums, then both floors in float64; past −60 every shift floors to 0 or −1 alike."""
    streams = 1 + unit.parity
    lines = []
    for h in range(streams):
        lines += [
            f"e{h} = max(np.int32(em[{(row + h) * WIDTH} + j]), np.int32({NEAR_ZERO}))",
            f"t{h} = {power(f'np.int32(np.int32({unit.fraction}) - e{h})')}",
            f"s{h} = {truncated(products[h::streams], f't{h}')}",
        ]
    if unit.parity:
        shifted = [f"np.int32(s{h} >> min(np.int32(e - e{h}), np.int32(31)))" for h in (0, 1)]
        lines += ["e = max(e0, e1)", f"s = {integer(shifted)}"]
    else:
        lines += ["e = e0", "s = s0"]
    gap = unit.sum_fraction - unit.fraction
    lines += [
        "top = max(e, ec)",
        f"down = max(np.int32(np.int32({gap}) + np.int32(e - top)), np.int32(-60))",
        f"d = np.floor(np.float64(s) * np.float64({power('down')}))",
        f"f = np.floor(c * {power(f'np.int32(np.int32({unit.fraction}) - top)')})",
    ]
    if unit.parity:
        lowest = f"np.int32(top - np.int32({unit.fraction + 1}))"
        lines.append(f"f = f if np.int32(field - np.int32(127)) >= {lowest} else np.float32(0)")
    total = f"np.float32(d + np.float64(f) * {float(1 << gap)})"
    # In two factors, because 2^(top − sum_fraction) alone can leave fp32's range.
    return [*lines, f"c = np.float32({total} * np.float32({2.0**-unit.sum_fraction}) * {power('top')})"]


def tree_body(products: range) -> list[str]:
    """CDNA1/2: plain fp32."""
    nodes = [f"(a{q} * b[{q * WIDTH} + j])" for q in products]
    while len(nodes) > 1:
        nodes = [f"({p} + {q})" for p, q in zip(nodes[::2], nodes[1::2], strict=True)]
    return [f"c = c + {nodes[0]}"]


def step_source(unit: Unit, step: int, fused: int) -> str:
    """`step(a, x, b, y, out, em)`: `fused` steps in sequence, of one row of A against one panel of B."""
    loop, count = f"    for j in range({WIDTH}):", step * fused
    lines = ["def step(a, x, b, y, out, em):", *(f"    a{q} = a[{q * ROWS}]" for q in range(count))]
    steps = [range(s * step, (s + 1) * step) for s in range(fused)]
    streams = 1 + unit.parity
    body = ["c = out[j]"]
    if unit.kind != "tree":
        lines += [f"    x{q} = x[{q * ROWS}]" for q in range(count)]
        for s, products in enumerate(steps):
            for h in range(streams):
                lines += [loop, *_indent(largest_exponents(s * streams + h, products[h::streams]))]
    for s, products in enumerate(steps):
        if unit.kind == "tree":
            body += tree_body(products)
        else:
            make = truncating_body if unit.kind == "truncating" else two_stage_body
            body += [*ACCUMULATOR_EXPONENT, *make(unit, products, s * streams)]
    return "\n".join([*lines, loop, *_indent([*body, "out[j] = c"])])


def loop_source(name: str, group: int, buffer: int) -> str:
    """The loops around `step`: a group of B stays in the L1 cache while a block of rows passes over it."""
    return f"""
def {name}(a, xa, b, xb, out, p0, p1, r0, r1, k0, k1):
    em = np.empty({buffer}, np.int16)
    for p in range(p0, p1):
        for r in range(r0, r1):
            for k in range(k0, k1, {group}):
                bg, yg = b[p][k * {WIDTH} : (k + {group}) * {WIDTH}], xb[p][k * {WIDTH} : (k + {group}) * {WIDTH}]
                ag, xg = a[r][k * {ROWS} : (k + {group}) * {ROWS}], xa[r][k * {ROWS} : (k + {group}) * {ROWS}]
                for row in range(min({ROWS}, out.shape[1] - r * {ROWS})):
                    step(ag[row:], xg[row:], bg, yg, out[p, r * {ROWS} + row], em)
"""


def _indent(lines: list[str]) -> list[str]:
    return ["        " + line for line in lines]


def fast_kernel(unit: Unit, step: int) -> Callable[..., None]:
    """`(a, xa, b, xb, out, p0, p1, r0, r1, k0, k1)`, the fast path of `unit` for steps of `step` products.

    Short steps are fused: several pass over the columns together while c stays in a register.
    """
    fused = max(1, FUSED // step)
    group = fused * step

    def run(a: Any, xa: Any, b: Any, xb: Any, out: Any, p0: int, p1: int, r0: int, r1: int, k0: int, k1: int) -> None:
        whole = k1 - (k1 - k0) % group
        if k0 < whole:
            _compiled(unit, step, fused)(a, xa, b, xb, out, p0, p1, r0, r1, k0, whole)
        if whole < k1:
            _compiled(unit, step, 1)(a, xa, b, xb, out, p0, p1, r0, r1, whole, k1)

    return run


@cache
def _compiled(unit: Unit, step: int, fused: int) -> Callable[..., None]:
    buffer = fused * (1 + unit.parity) * WIDTH
    return _compile(step_source(unit, step, fused), step * fused, buffer)


@cache
def _compile(source: str, group: int, buffer: int) -> Callable[..., None]:
    """Both functions, under this file's name: so numba finds a folder for its cache, which it keys by function name."""
    digest = hashlib.sha256((source + loop_source("", group, buffer)).encode()).hexdigest()
    name = f"fast_{digest[:16]}"
    namespace: dict[str, Any] = {"np": np, "__name__": __name__}
    exec(compile(source, __file__, "exec"), namespace)
    namespace["step"].__qualname__ = namespace["step"].__name__ = f"step_{name}"
    namespace["step"] = compiled(namespace["step"])
    exec(compile(loop_source(name, group, buffer), __file__, "exec"), namespace)
    return compiled(namespace[name])
