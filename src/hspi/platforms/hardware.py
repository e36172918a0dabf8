"""The machine as a record: which hardware answered, from what the device itself says of it (DESIGN.md §1).

A CPU says family, model, stepping and flags by CPUID; a GPU its own name, compute capability and number of
multiprocessors. Where a hypervisor's model number and the flags disagree, nothing is guessed: the id is made of the
numbers, and the provenance says why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hspi.platforms.record import Platform

Kind = Literal["cpu", "gpu", "virtual-gpu", "unknown"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """id: `amd-zen3`, `nvidia-h100-pcie`, `virtual-h100`; features: CPU flags, or what a GPU says of itself;
    provenance: one sentence, what the id rests on.
    """

    id: str
    kind: Kind
    vendor: str
    architecture: str
    model: str
    features: tuple[str, ...] = ()
    provenance: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def hardware_of(platform: Platform, facts: Mapping[str, str]) -> Hardware:
    """The hardware that answered as `platform`, from a signature's facts.

    A virtual GPU is the one that it imitates, whatever CPU ran it; a GPU is what the driver called it; a server of
    which this machine knows nothing is what its label declares; all else is the CPU of the facts.
    """
    if platform.device.startswith("virtual "):
        name = platform.device.removeprefix("virtual ")
        return Hardware(f"virtual-{name.lower()}", "virtual-gpu", "", str(platform.options["architecture"]), name)
    if "gpu" in facts:
        return Hardware(_plain(facts["gpu"]), "gpu", "", "", facts["gpu"])
    if "cpu_vendor" not in facts:
        return Hardware(_plain(platform.device), "unknown", "", "", platform.device)
    vendor = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(facts["cpu_vendor"], _plain(facts["cpu_vendor"]))
    family, model, *_ = facts["cpu_family_model_stepping"].split("/")
    flags = tuple(facts["cpu_flags"].split())
    id = "amd-zen3" if (vendor, family, model) == ("amd", "25", "1") else f"{vendor}-{family}-{model}"
    return Hardware(id, "cpu", vendor, "", facts["cpu_model"], flags)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"
