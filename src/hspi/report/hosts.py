"""Which machines the results come from, as the headers of the signatures say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from hspi.errors import DataError
from hspi.signatures.schema import read_header
from hspi.signatures.store import iter_store

VIRTUAL = "emulated on CPUs"
WIDEST = {"amx_tile": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}


def hosts(store: str | Path) -> list[str]:
    """Each machine that a store's signatures were made on, with their dates, the one with the most signatures first:
    "amd-zen3: AMD EPYC (family 25, model 1; AVX2), 2026-11-24"; and in the end all virtual GPUs as one.

    Raises DataError if the store holds no signature, or a file is none.
    """
    days: dict[str, list[str]] = defaultdict(list)
    virtual: set[str] = set()
    for header in map(read_header, iter_store(store)):
        hardware = header.hardware
        if emulated := hardware.kind == "virtual-gpu":
            virtual.add(hardware.id)
        days[VIRTUAL if emulated else f"{hardware.id}: {machine(header.facts)}"].append(header.created[:10])
    if not days:
        raise DataError(f"{store} must hold the signatures that the results come from, but it holds none")
    order = sorted(days, key=lambda name: (name == VIRTUAL, -len(days[name]), name))
    names = {VIRTUAL: f"{VIRTUAL}: {', '.join(sorted(virtual))}"}
    return [f"{names.get(name, name)}, {' – '.join(sorted({min(days[name]), max(days[name])}))}" for name in order]


def machine(facts: Mapping[str, str]) -> str:
    """The processor that a signature's facts name: the GPU where one answered, else the CPU."""
    if "gpu" in facts:
        return f"{facts['gpu']} (compute capability {facts.get('gpu_compute_capability', '?')})"
    family, model, *_ = [*facts.get("cpu_family_model_stepping", "").split("/"), "?", "?"]
    flags = facts.get("cpu_flags", "").split()
    known = [f"family {family or '?'}, model {model}", *[WIDEST[f] for f in WIDEST if f in flags][:1]]
    return f"{facts.get('cpu_model') or 'a machine that gave no name'} ({'; '.join(known)})"
