"""The families of CPUs as records: by which numbers each one is known, and which instruction sets it has.

x86 says vendor, family, model and stepping by CPUID; ARM implementer and part in MIDR_EL1, which stand here as family
and model. Two product lines of one microarchitecture have one id: no instruction that matters here tells them apart.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# Instruction sets in the order in which families got them; a tier's flags come on top of those of the tiers before it.
X86 = {
    "sse": ("sse4_2",),
    "avx": ("avx",),
    "f16c": ("f16c",),
    "fma": ("fma",),
    "avx2": ("avx2",),
    "avx2-vnni": ("avx_vnni",),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "avx512-vnni": ("avx512_vnni",),
    "avx512-bf16": ("avx512_bf16",),
    "avx512-fp16": ("avx512_fp16",),
    "amx": ("amx_tile", "amx_int8", "amx_bf16"),
    "amx-fp16": ("amx_fp16",),
}
ARM = {
    "neon": ("asimd",),
    "neon-fp16": ("asimdhp",),
    "neon-dot": ("asimddp",),
    "neon-bf16": ("i8mm", "bf16"),
    "sve": ("sve",),
    "sve2": ("sve2",),
}
# What a family of a higher tier may have or not: kernels with AVX-512 do not ask for it.
ASIDE = frozenset({"avx_vnni"})
TIER_FLAGS = frozenset(flag for ladder in (X86, ARM) for flags in ladder.values() for flag in flags)

AMD_SOURCE = "Linux arch/x86/kernel/cpu/amd.c; AMD's Processor Programming References"
INTEL_SOURCE = "Linux arch/x86/include/asm/intel-family.h; Intel SDM and ISA Extensions Programming Reference"
ARM_SOURCE = "Linux arch/arm64/include/asm/cputype.h; Arm's Technical Reference Manuals"
ANY = range(256)


@dataclass(frozen=True, slots=True)
class CpuFamily:
    """id: as a platform names it, `amd-zen3`; models: those of the CPUID family (ARM: parts of the implementer);
    tier: the highest of X86 or ARM; least: the lowest that may be shown, where Linux named the highest late.
    """

    id: str
    vendor: str
    architecture: str
    products: str
    family: int
    models: tuple[range, ...]
    tier: str
    least: str
    steppings: range
    source: str

    @property
    def must(self) -> frozenset[str]:
        """Flags that are there."""
        return _up_to(self.least) - (ASIDE if self.least != "avx2-vnni" else frozenset())

    @property
    def never(self) -> frozenset[str]:
        """Flags that are not there."""
        ladder = _ladder(self.tier)
        return frozenset(flag for flags in ladder.values() for flag in flags) - _up_to(self.tier)

    def has(self, family: int, model: int, stepping: int | None) -> bool:
        """Whether the numbers are this family's. stepping: None where the CPU did not say it."""
        known = self.steppings == ANY or (stepping is not None and stepping in self.steppings)
        return family == self.family and any(model in models for models in self.models) and known

    def explains(self, flags: Collection[str]) -> bool:
        return self.must.issubset(flags) and not self.never.intersection(flags)


def find(vendor: str, family: int, model: int, stepping: int | None) -> CpuFamily | None:
    """The record of these numbers, if the table has one."""
    return next((f for f in FAMILIES if f.vendor == vendor and f.has(family, model, stepping)), None)


def tier_of(flags: Collection[str], like: str) -> str:
    """The highest tier of which all flags are there, on the ladder of the tier `like`; `baseline` where none is."""
    reached = [name for name, own in _ladder(like).items() if set(own).issubset(flags)]
    return reached[-1] if reached else "baseline"


def families_with(vendor: str, flags: Collection[str]) -> list[str]:
    """Architectures of a vendor whose flags are these, in the order of the table."""
    own = (f for f in FAMILIES if f.vendor == vendor and f.explains(flags) and tier_of(flags, f.tier) == f.tier)
    return list(dict.fromkeys(f.architecture for f in own))


def _ladder(tier: str) -> dict[str, tuple[str, ...]]:
    return X86 if tier in X86 else ARM


def _up_to(tier: str) -> frozenset[str]:
    ladder = _ladder(tier)
    names = list(ladder)
    return frozenset(flag for name in names[: names.index(tier) + 1] for flag in ladder[name])


def _models(models: tuple[int | range, ...]) -> tuple[range, ...]:
    return tuple(m if isinstance(m, range) else range(m, m + 1) for m in models)


def _to(first: int, last: int) -> range:
    return range(first, last + 1)


def _amd(id: str, architecture: str, tier: str, family: int, products: str, *models: int | range) -> CpuFamily:
    return CpuFamily(id, "amd", architecture, products, family, _models(models), tier, tier, ANY, AMD_SOURCE)


def _intel(
    id: str, name: str, tier: str, products: str, *models: int | range, steppings: range = ANY, least: str = ""
) -> CpuFamily:
    return CpuFamily(
        f"intel-{id}", "intel", name, products, 6, _models(models), tier, least or tier, steppings, INTEL_SOURCE
    )


def _arm(id: str, vendor: str, name: str, tier: str, implementer: int, products: str, *parts: int) -> CpuFamily:
    return CpuFamily(id, vendor, name, products, implementer, _models(parts), tier, tier, ANY, ARM_SOURCE)


_AMD = (
    _amd("amd-bulldozer", "Bulldozer", "avx", 21, "Opteron 6200, FX, 2011", _to(0x00, 0x01)),
    _amd("amd-piledriver", "Piledriver", "fma", 21, "Opteron 6300, FX, A-series, 2012", 0x02, _to(0x10, 0x1F)),
    _amd("amd-steamroller", "Steamroller", "fma", 21, "A-series (Kaveri), 2014", _to(0x30, 0x3F)),
    _amd("amd-excavator", "Excavator", "avx2", 21, "A-series (Carrizo, Stoney Ridge), 2015", _to(0x60, 0x7F)),
    _amd("amd-zen1", "Zen", "avx2", 23, "EPYC 7001, Ryzen 1000 and 2000G, 2017", 0x01, 0x11, 0x20),
    _amd("amd-zen-plus", "Zen+", "avx2", 23, "Ryzen 2000 and 3000G, Threadripper 2000, 2018", 0x08, 0x18),
    _amd("amd-zen2", "Zen 2", "avx2", 23, "EPYC 7002 (Rome), Threadripper 3000, 2019", _to(0x30, 0x3F)),
    _amd(
        "amd-zen2", "Zen 2", "avx2", 23, "Ryzen 3000 to 5000 (Matisse, Renoir, Lucienne, Mendocino, Van Gogh), 2019",
        _to(0x40, 0x4F), _to(0x60, 0x7F), _to(0x90, 0x91), _to(0xA0, 0xAF),
    ),
    _amd("amd-zen3", "Zen 3", "avx2", 25, "EPYC 7003 (Milan), Threadripper 5000, 2021", _to(0x00, 0x0F)),
    _amd("amd-zen3", "Zen 3", "avx2", 25, "Ryzen 5000 (Vermeer, Cezanne), 2020", _to(0x20, 0x2F), _to(0x50, 0x5F)),
    _amd("amd-zen3-plus", "Zen 3+", "avx2", 25, "Ryzen 6000 (Rembrandt), 2022", _to(0x40, 0x4F)),
    _amd("amd-zen4", "Zen 4", "avx512-bf16", 25, "EPYC 9004 (Genoa), Threadripper 7000, 2022", _to(0x10, 0x1F)),
    _amd("amd-zen4", "Zen 4", "avx512-bf16", 25, "Ryzen 7000 (Raphael), 7040, 8040 (Phoenix), 2022", _to(0x60, 0x7F)),
    _amd("amd-zen4c", "Zen 4c", "avx512-bf16", 25, "EPYC 97x4 (Bergamo), 8004 (Siena), 2023", _to(0xA0, 0xAF)),
    _amd("amd-zen5", "Zen 5", "avx512-bf16", 26, "EPYC 9005 (Turin), Threadripper 9000, 2024", _to(0x00, 0x0F)),
    _amd("amd-zen5c", "Zen 5c", "avx512-bf16", 26, "EPYC 9005 (Turin Dense), 2024", _to(0x10, 0x1F)),
    _amd(
        "amd-zen5", "Zen 5", "avx512-bf16", 26, "Ryzen 9000 (Granite Ridge), Ryzen AI 300 (Strix, Krackan), 2024",
        _to(0x20, 0x2F), _to(0x40, 0x4F), _to(0x60, 0x7F),
    ),
    CpuFamily("hygon-dhyana", "hygon", "Zen", "Hygon C86 7100, 2018", 24, (_to(0x00, 0x03),), "avx2", "avx2", ANY,
              "Linux arch/x86/kernel/cpu/hygon.c"),
)  # fmt: skip

_INTEL = (
    _intel("sandy-bridge", "Sandy Bridge", "avx", "Core 2nd, Xeon E5, 2011", 0x2A, 0x2D),
    _intel("ivy-bridge", "Ivy Bridge", "f16c", "Core 3rd, Xeon E5 v2, 2012", 0x3A, 0x3E),
    _intel("haswell", "Haswell", "avx2", "Core 4th, Xeon E5 v3, 2013", 0x3C, 0x3F, 0x45, 0x46),
    _intel("broadwell", "Broadwell", "avx2", "Core 5th, Xeon E5 v4, D-1500, 2014", 0x3D, 0x47, 0x4F, 0x56),
    _intel("skylake", "Skylake", "avx2", "Core 6th, Xeon E3 v5, 2015", 0x4E, 0x5E),
    _intel("kaby-lake", "Kaby Lake", "avx2", "Core 7th, 2016", 0x8E, 0x9E, steppings=_to(0, 9)),
    _intel("coffee-lake", "Coffee Lake", "avx2", "Core 8th and 9th, 2017", 0x8E, 0x9E, steppings=_to(10, 15)),
    _intel("comet-lake", "Comet Lake", "avx2", "Core 10th, 2019", 0xA5, 0xA6),
    _intel("skylake-sp", "Skylake-SP", "avx512", "Xeon Scalable 1st, 2017", 0x55, steppings=_to(0, 4)),
    _intel("cascade-lake", "Cascade Lake", "avx512-vnni", "Xeon Scalable 2nd, 2019", 0x55, steppings=_to(5, 7)),
    _intel("cooper-lake", "Cooper Lake", "avx512-bf16", "Xeon Scalable 3rd, 4 sockets, 2020", 0x55,
           steppings=_to(10, 11)),
    _intel("cannon-lake", "Cannon Lake", "avx512", "Core i3-8121U, 2018", 0x66),
    _intel("ice-lake", "Ice Lake", "avx512-vnni", "Core 10th, mobile, 2019", 0x7D, 0x7E),
    _intel("ice-lake-sp", "Ice Lake-SP", "avx512-vnni", "Xeon Scalable 3rd, D-1700, 2021", 0x6A, 0x6C),
    _intel("tiger-lake", "Tiger Lake", "avx512-vnni", "Core 11th, mobile, 2020", 0x8C, 0x8D),
    _intel("rocket-lake", "Rocket Lake", "avx512-vnni", "Core 11th, Xeon E-2300, 2021", 0xA7),
    _intel("alder-lake", "Alder Lake", "avx2-vnni", "Core 12th, 2021", 0x97, 0x9A),
    _intel("gracemont", "Gracemont", "avx2-vnni", "N100, Core i3-N300 (Alder Lake-N), 2023", 0xBE),
    _intel("raptor-lake", "Raptor Lake", "avx2-vnni", "Core 13th and 14th, 2022", 0xB7, 0xBA, 0xBF),
    _intel("meteor-lake", "Meteor Lake", "avx2-vnni", "Core Ultra 1st, 2023", 0xAA, 0xAC),
    _intel("arrow-lake", "Arrow Lake", "avx2-vnni", "Core Ultra 200S, 200H, 2024", 0xB5, 0xC5, 0xC6),
    _intel("lunar-lake", "Lunar Lake", "avx2-vnni", "Core Ultra 200V, 2024", 0xBD),
    _intel("sapphire-rapids", "Sapphire Rapids", "amx", "Xeon Scalable 4th, Max, W-3400, 2023", 0x8F),
    _intel("emerald-rapids", "Emerald Rapids", "amx", "Xeon Scalable 5th, 2023", 0xCF),
    # Linux names amx_fp16 since 6.2; a library asks CPUID, so an older kernel hides nothing from it.
    _intel("granite-rapids", "Granite Rapids", "amx-fp16", "Xeon 6 P-cores, 2024", 0xAD, 0xAE, least="amx"),
    _intel("sierra-forest", "Sierra Forest", "avx2-vnni", "Xeon 6 E-cores, 2024", 0xAF),
)  # fmt: skip

_ARM_CORES = (
    _arm("arm-cortex-a72", "arm", "Cortex-A72", "neon", 0x41, "Graviton, Raspberry Pi 4", 0xD08),
    _arm("arm-cortex-a76", "arm", "Cortex-A76", "neon-dot", 0x41, "Raspberry Pi 5", 0xD0B),
    _arm("arm-neoverse-n1", "arm", "Neoverse N1", "neon-dot", 0x41, "Ampere Altra, Graviton2", 0xD0C),
    _arm("arm-neoverse-v1", "arm", "Neoverse V1", "sve", 0x41, "Graviton3", 0xD40),
    _arm("arm-neoverse-n2", "arm", "Neoverse N2", "sve2", 0x41, "Cobalt 100, Yitian 710", 0xD49),
    _arm("arm-neoverse-v2", "arm", "Neoverse V2", "sve2", 0x41, "Graviton4, Grace, Axion", 0xD4F),
    _arm("ampere-ampereone", "ampere", "AmpereOne", "neon-bf16", 0xC0, "AmpereOne", 0xAC3, 0xAC4),
    _arm("apple-m1", "apple", "Apple M1", "neon-dot", 0x61, "M1, Pro, Max", 0x22, 0x23, 0x24, 0x25, 0x28, 0x29),
    _arm("apple-m2", "apple", "Apple M2", "neon-bf16", 0x61, "M2, Pro, Max", 0x32, 0x33, 0x34, 0x35, 0x38, 0x39),
)

FAMILIES = (*_AMD, *_INTEL, *_ARM_CORES)
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "HygonGenuine": "hygon"}
IMPLEMENTERS = {0x41: "arm", 0x61: "apple", 0xC0: "ampere"}
