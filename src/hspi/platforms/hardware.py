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

from hspi.numerics import architectures
from hspi.platforms import cpu_families, gpus
from hspi.platforms.cpu_families import CpuFamily
from hspi.platforms.record import Platform

Kind = Literal["cpu", "gpu", "virtual-gpu", "unknown"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """id: `amd-zen3`, `nvidia-h100-pcie`, `virtual-h100`; features: CPU flags of interest, or what a GPU says;
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
    """The hardware that answered as `platform`, from a signature's facts; odd and missing ones give an honest fallback.

    A virtual GPU is the one that it imitates, whatever CPU ran it; a GPU is what the driver called it; a server of
    which this machine knows nothing is what its label declares; all else is the CPU of the facts, capped or not.
    """
    if platform.device.startswith("virtual "):
        return _virtual(platform)
    if facts.get("gpu"):
        return _gpu(facts)
    if "cpu_implementer" in facts and platform.device != "cuda":
        return _arm(facts)
    if "cpu_vendor" in facts and platform.device != "cuda":
        return _x86(facts)
    said = "a GPU of which its driver gave no name" if "cpu_vendor" in facts else "declared by whoever collected it"
    return Hardware(_plain(platform.device), "unknown", "", "", platform.device, provenance=said)


def _virtual(platform: Platform) -> Hardware:
    name = platform.device.removeprefix("virtual ")
    architecture = str(platform.options.get("architecture") or architectures.GPUS.get(name, ""))
    vendor = gpus.vendor_of(architecture) if architecture else ""
    said = f"emulated: the published model of {architecture or 'an unknown'} matrix units, not compared with silicon"
    return Hardware(f"virtual-{_plain(name)}", "virtual-gpu", vendor, architecture, name, provenance=said)


# ---------------------------------------------------------------- GPUs


def _gpu(facts: Mapping[str, str]) -> Hardware:
    name, known = facts["gpu"], gpus.find(facts["gpu"])
    capability, units = facts.get("gpu_compute_capability", ""), facts.get("gpu_multiprocessors", "")
    numbers = [f"compute capability {capability}"] * bool(capability) + [f"{units} multiprocessors"] * bool(units)
    if known is None:
        said = f"the driver calls it {name!r}, which the table of GPUs does not have"
        vendor = next((v for v in ("nvidia", "amd") if v in name.lower()), "")
        return Hardware(_plain(name), "gpu", vendor, "", name, tuple(numbers), said)
    fits = capability in ("", known.compute_capability) and units in ("", str(known.multiprocessors))
    if fits:
        said = " and ".join([f"the driver calls it {name!r}", *numbers]) + f", as {known.name} has it"
        return Hardware(known.id, "gpu", known.vendor, known.architecture, name, tuple(numbers), said)
    id = _plain("-".join([name, *[f"cc{capability}"] * bool(capability), *[f"sm{units}"] * bool(units)]))
    said = (
        f"the driver calls it {name!r}, which has compute capability {known.compute_capability} and "
        f"{known.multiprocessors} multiprocessors, but it says {' and '.join(numbers)}"
    )
    return Hardware(id, "gpu", known.vendor, "", name, tuple(numbers), said)


# ---------------------------------------------------------------- CPUs


def _x86(facts: Mapping[str, str]) -> Hardware:
    vendor = cpu_families.VENDORS.get(facts["cpu_vendor"], _plain(facts["cpu_vendor"]))
    family, model, stepping = [*facts.get("cpu_family_model_stepping", "").split("/"), "?", "?", "?"][:3]
    if not (facts["cpu_vendor"] and family.isdecimal() and model.isdecimal()):
        return _nameless(facts)
    known = cpu_families.find(vendor, int(family), int(model), int(stepping) if stepping.isdecimal() else None)
    numbers = f"CPUID says family {family}, model {model}, stepping {stepping}"
    return _cpu(facts, vendor, f"{vendor}-{int(family)}-{int(model)}", numbers, known)


def _arm(facts: Mapping[str, str]) -> Hardware:
    implementer, part = _number(facts["cpu_implementer"]), _number(facts.get("cpu_part", ""))
    if implementer is None or part is None:
        return _nameless(facts)
    vendor = cpu_families.IMPLEMENTERS.get(implementer, f"implementer-{implementer:#04x}")
    known = cpu_families.find(vendor, implementer, part, None)
    numbers = f"MIDR_EL1 says implementer {implementer:#04x}, part {part:#05x}"
    return _cpu(facts, vendor, f"{vendor}-{part:#05x}", numbers, known)


def _cpu(facts: Mapping[str, str], vendor: str, plain: str, numbers: str, known: CpuFamily | None) -> Hardware:
    """plain: the id that the numbers alone make; numbers: the same for people; known: the record that they find."""
    flags = tuple(facts.get("cpu_flags", "").split())
    name = facts.get("cpu_model") or (known.products if known else "")
    if known is None:
        return Hardware(plain, "cpu", vendor, "", name, flags, f"{numbers}, which the table of CPUs does not have")
    if not flags:
        said = f"{numbers}, which is {known.architecture} ({known.products}); no flags were given"
        return Hardware(known.id, "cpu", vendor, known.architecture, name, flags, said)
    if known.explains(flags):
        said = f"{numbers}, which is {known.architecture} ({known.products}), and the flags are those of it"
        return Hardware(known.id, "cpu", vendor, known.architecture, name, flags, said)
    id = f"{plain}-{cpu_families.tier_of(flags, known.tier)}"
    return Hardware(
        id, "cpu", vendor, "", name, flags, f"{numbers} ({known.architecture}), {_contradiction(known, flags)}"
    )


def _contradiction(known: CpuFamily, flags: tuple[str, ...]) -> str:
    extra, missing = sorted(known.never.intersection(flags)), sorted(known.must.difference(flags))
    parts = [f"have {', '.join(extra)}, which it has not"] if extra else []
    parts += [f"lack {', '.join(missing)}, which it has"] if missing else []
    others = " or ".join(cpu_families.families_with(known.vendor, flags))
    like = f"such flags are those of {others}" if others else "no family of the table has such flags"
    return f"but the flags {' and '.join(parts)}; {like}"


def _nameless(facts: Mapping[str, str]) -> Hardware:
    """A CPU that gave no numbers: what it calls itself, or its instruction set's name."""
    name = facts.get("cpu_model", "")
    flags = tuple(facts.get("cpu_flags", "").split())
    said = "the CPU says neither CPUID nor MIDR_EL1; the id is the name that the host gives it"
    return Hardware(_plain(name or facts.get("architecture", "")), "cpu", "", "", name, flags, said)


def _number(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"
