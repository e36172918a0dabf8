"""A platform for every GPU × number type × kernel plan of the emulated matrix units, generated from their records."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from hspi.numerics.architectures import ARCHITECTURES, GPUS, UNITS, Unit, unit
from hspi.numerics.plans import PADDING, KernelPlan, schedule
from hspi.platforms.record import Platform
from hspi.platforms.virtual.plans import PLANS, PlanBook

ENGINE = "virtual-gpu"
NOTE = "matrix products bit by bit after published models of the hardware, not compared with silicon"
FP8_TYPES = ("e4m3", "e4m3fnuz")
TF32_TYPES = ("tf32", "xf32")


def dtypes_of(architecture: str) -> list[str]:
    """Number types that a model can be served in: `fp16`, `bf16`, `tf32`, `fp8` (a scale for each weight row), `fp8t`
    (one for each weight tensor)."""
    has = {t for a, t in UNITS if a == architecture}
    found: list[str] = [t for t in ("fp16", "bf16") if t in has]
    found += ["tf32"] if has & {*TF32_TYPES} else []
    return found + (["fp8", "fp8t"] if has & {*FP8_TYPES} else [])


def virtual(gpu: str, dtype: str, plan: str) -> Platform:
    """One virtual platform; KeyError where the GPU or plan is not known."""
    is_fp8 = dtype.startswith("fp8")
    scales = {"weight_scale": "tensor" if dtype == "fp8t" else "channel"} if is_fp8 else {}
    return Platform(
        id=f"vgpu-{gpu.lower()}-{dtype}-{plan}",
        engine=ENGINE,
        provenance="emulated",
        device=f"virtual {gpu}",
        dtype="bf16" if is_fp8 else dtype,
        quantization="fp8" if is_fp8 else "none",
        attention="eager",
        options={"architecture": GPUS[gpu], "plan": plan, **scales},
        needs_packages=("numba", "torch", "transformers"),
        extra="numerics",
        note=NOTE,
    )


VIRTUAL = tuple(virtual(g, d, p) for g, a in GPUS.items() for d in dtypes_of(a) for p in PLANS)


def family(platform: Platform) -> str:
    """The id without its plan: platforms of one family differ by kernel plan alone. Any other platform: its id."""
    return platform.id.rpartition("-")[0] if platform.engine == ENGINE else platform.id


def units_of(platform: Platform) -> tuple[Unit, ...]:
    """The matrix units that a virtual platform uses: that of its linear layers, then that of everything else."""
    architecture = str(platform.options["architecture"])
    kind = "xf32" if platform.dtype == "tf32" and (architecture, "xf32") in UNITS else platform.dtype
    plain = unit(architecture, kind)
    if platform.quantization != "fp8":
        return (plain, plain)
    return unit(architecture, next((t for t in FP8_TYPES if (architecture, t) in UNITS), FP8_TYPES[0])), plain


def arithmetic_class(platform: Platform) -> str:
    """Architectures whose units compute alike in this platform's number type, such as `turing+ampere+ada`.

    By the records, members differ by kernel plan alone: no observation can tell them apart, and none is claimed to.
    """
    own = [u.arithmetic for u in units_of(platform)]
    others = {v.options["architecture"]: v for v in VIRTUAL if _served_type(v) == _served_type(platform)}
    return "+".join(a for a in ARCHITECTURES if a in others and [u.arithmetic for u in units_of(others[a])] == own)


def alike(a: Platform, b: Platform, lengths: Iterable[int]) -> bool:
    """Whether the records say that two virtual platforms give identical bits on products of these lengths of K."""
    if (_served_type(a), a.options.get("weight_scale")) != (_served_type(b), b.options.get("weight_scale")):
        return False
    pairs = list(zip(units_of(a), units_of(b), strict=True))
    books = PlanBook.of(a.options["plan"]), PlanBook.of(b.options["plan"])
    if any(u.arithmetic != v.arithmetic for u, v in pairs) or any(book.by for book in books):
        return a == b
    plans = [book.plan_of("") for book in books]
    return all(
        walk(plans[0], k, u.instruction_k) == walk(plans[1], k, v.instruction_k) for k in lengths for u, v in pairs
    )


def walk(plan: KernelPlan, k: int, instruction_k: int) -> tuple[object, ...]:
    """What a plan comes to for one length of K: chains of columns without trailing padding, and how they are added."""
    chains = tuple(tuple(tuple(_trim(s)) for s in chain) for chain in schedule(plan, k, instruction_k))
    while len(chains) > 1 and not any(chains[-1]):  # an accumulator without work adds a zero
        chains = chains[:-1]
    return (chains, plan.combine if len(chains) > 2 else "", plan.workspace if len(chains) > 1 else "")


def _trim(columns: npt.NDArray[np.int64]) -> list[int]:
    kept = np.flatnonzero(columns != PADDING)
    return columns[: kept[-1] + 1].tolist() if len(kept) else []


def _served_type(platform: Platform) -> tuple[str, str]:
    return platform.dtype, platform.quantization
