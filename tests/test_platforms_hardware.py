"""Which hardware answered, by CPUID, MIDR_EL1, a driver's word or a declaration."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hspi.numerics import architectures
from hspi.platforms import cpu_families, gpus, machine
from hspi.platforms.catalogue import CATALOGUE, get
from hspi.platforms.cpu_families import FAMILIES, X86
from hspi.platforms.hardware import hardware_of
from hspi.platforms.record import Platform

CPU = get("torch-bf16")
CUDA = get("cuda-bf16")
VENDOR = {"amd": "AuthenticAMD", "intel": "GenuineIntel", "hygon": "HygonGenuine"}

AVX2 = "sse4_2 avx fma avx2 f16c"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl"
VNNI = f"{AVX512} avx512_vnni"
BF16 = f"{VNNI} avx512_bf16"
AMX = f"{BF16} avx_vnni avx512_fp16 amx_tile amx_int8 amx_bf16"

# What /proc/cpuinfo of each kind of machine says, by hand: vendor, family/model/stepping, flags, id.
CPUS = [
    ("amd", "21/1/2", "sse4_2 avx", "amd-bulldozer"),
    ("amd", "21/2/0", "sse4_2 avx fma f16c", "amd-piledriver"),
    ("amd", "21/48/1", "sse4_2 avx fma f16c", "amd-steamroller"),
    ("amd", "21/101/1", AVX2, "amd-excavator"),
    ("amd", "23/1/2", AVX2, "amd-zen1"),  # Naples
    ("amd", "23/17/0", AVX2, "amd-zen1"),  # Raven Ridge
    ("amd", "23/8/2", AVX2, "amd-zen-plus"),
    ("amd", "23/24/1", AVX2, "amd-zen-plus"),  # Picasso
    ("amd", "23/49/0", AVX2, "amd-zen2"),  # Rome
    ("amd", "23/113/0", AVX2, "amd-zen2"),  # Matisse
    ("amd", "25/1/1", AVX2, "amd-zen3"),  # Milan
    ("amd", "25/33/0", AVX2, "amd-zen3"),  # Vermeer
    ("amd", "25/80/0", AVX2, "amd-zen3"),  # Cezanne
    ("amd", "25/68/1", AVX2, "amd-zen3-plus"),
    ("amd", "25/17/1", BF16, "amd-zen4"),  # Genoa
    ("amd", "25/97/2", BF16, "amd-zen4"),  # Raphael
    ("amd", "25/116/1", BF16, "amd-zen4"),  # Phoenix
    ("amd", "25/160/2", BF16, "amd-zen4c"),  # Bergamo
    ("amd", "26/2/1", f"{BF16} avx_vnni", "amd-zen5"),  # Turin
    ("amd", "26/17/0", f"{BF16} avx_vnni", "amd-zen5c"),  # Turin Dense
    ("amd", "26/68/0", f"{BF16} avx_vnni", "amd-zen5"),  # Granite Ridge
    ("hygon", "24/1/1", AVX2, "hygon-dhyana"),
    ("intel", "6/45/7", "sse4_2 avx", "intel-sandy-bridge"),
    ("intel", "6/62/4", "sse4_2 avx f16c", "intel-ivy-bridge"),
    ("intel", "6/63/2", AVX2, "intel-haswell"),
    ("intel", "6/79/1", AVX2, "intel-broadwell"),
    ("intel", "6/94/3", AVX2, "intel-skylake"),
    ("intel", "6/158/9", AVX2, "intel-kaby-lake"),
    ("intel", "6/158/10", AVX2, "intel-coffee-lake"),
    ("intel", "6/165/5", AVX2, "intel-comet-lake"),
    ("intel", "6/85/4", AVX512, "intel-skylake-sp"),
    ("intel", "6/85/7", VNNI, "intel-cascade-lake"),
    ("intel", "6/85/11", BF16, "intel-cooper-lake"),
    ("intel", "6/102/3", AVX512, "intel-cannon-lake"),
    ("intel", "6/126/5", VNNI, "intel-ice-lake"),
    ("intel", "6/106/6", VNNI, "intel-ice-lake-sp"),
    ("intel", "6/108/1", VNNI, "intel-ice-lake-sp"),
    ("intel", "6/140/1", VNNI, "intel-tiger-lake"),
    ("intel", "6/167/1", VNNI, "intel-rocket-lake"),
    ("intel", "6/151/2", f"{AVX2} avx_vnni", "intel-alder-lake"),
    ("intel", "6/190/0", f"{AVX2} avx_vnni", "intel-gracemont"),
    ("intel", "6/183/1", f"{AVX2} avx_vnni", "intel-raptor-lake"),
    ("intel", "6/170/4", f"{AVX2} avx_vnni", "intel-meteor-lake"),
    ("intel", "6/198/2", f"{AVX2} avx_vnni", "intel-arrow-lake"),
    ("intel", "6/189/1", f"{AVX2} avx_vnni", "intel-lunar-lake"),
    ("intel", "6/143/8", AMX, "intel-sapphire-rapids"),
    ("intel", "6/207/2", AMX, "intel-emerald-rapids"),
    ("intel", "6/173/1", f"{AMX} amx_fp16", "intel-granite-rapids"),
    ("intel", "6/173/1", AMX, "intel-granite-rapids"),  # before Linux 6.2
    ("intel", "6/175/3", f"{AVX2} avx_vnni", "intel-sierra-forest"),
]

NEON = "asimd asimdhp asimddp"
CORES = [
    ("0x41", "0xd08", "asimd", "arm-cortex-a72"),
    ("0x41", "0xd0b", NEON, "arm-cortex-a76"),
    ("0x41", "0xd0c", NEON, "arm-neoverse-n1"),
    ("0x41", "0xd40", f"{NEON} i8mm bf16 sve", "arm-neoverse-v1"),
    ("0x41", "0xd49", f"{NEON} i8mm bf16 sve sve2", "arm-neoverse-n2"),
    ("0x41", "0xd4f", f"{NEON} i8mm bf16 sve sve2", "arm-neoverse-v2"),
    ("0xc0", "0xac3", f"{NEON} i8mm bf16", "ampere-ampereone"),
    ("0x61", "0x022", NEON, "apple-m1"),
    ("0x61", "0x033", f"{NEON} i8mm bf16", "apple-m2"),
]

# Drivers' names with what each GPU says of itself.
BOARDS = [
    ("Tesla V100-SXM2-16GB", "7.0", "80", "nvidia-v100-sxm", "V100"),
    ("Tesla V100-PCIE-32GB", "7.0", "80", "nvidia-v100-pcie", "V100"),
    ("Tesla V100S-PCIE-32GB", "7.0", "80", "nvidia-v100s-pcie", "V100"),
    ("Tesla T4", "7.5", "40", "nvidia-t4", "T4"),
    ("NVIDIA A100-SXM4-80GB", "8.0", "108", "nvidia-a100-sxm", "A100"),
    ("A100-SXM4-40GB", "8.0", "108", "nvidia-a100-sxm", "A100"),  # drivers before 470
    ("NVIDIA A100-PCIE-40GB", "8.0", "108", "nvidia-a100-pcie", "A100"),
    ("NVIDIA A100 80GB PCIe", "8.0", "108", "nvidia-a100-pcie", "A100"),
    ("NVIDIA A30", "8.0", "56", "nvidia-a30", ""),
    ("NVIDIA A10", "8.6", "72", "nvidia-a10", ""),
    ("NVIDIA A10G", "8.6", "80", "nvidia-a10g", ""),
    ("NVIDIA A40", "8.6", "84", "nvidia-a40", "A40"),
    ("NVIDIA RTX A6000", "8.6", "84", "nvidia-rtx-a6000", "A6000"),
    ("NVIDIA GeForce RTX 3090", "8.6", "82", "nvidia-rtx-3090", ""),
    ("NVIDIA L4", "8.9", "58", "nvidia-l4", ""),
    ("NVIDIA L40", "8.9", "142", "nvidia-l40", ""),
    ("NVIDIA L40S", "8.9", "142", "nvidia-l40s", "L40S"),
    ("NVIDIA GeForce RTX 4090", "8.9", "128", "nvidia-rtx-4090", "4090"),
    ("NVIDIA H100 PCIe", "9.0", "114", "nvidia-h100-pcie", "H100"),
    ("NVIDIA H100 80GB HBM3", "9.0", "132", "nvidia-h100-sxm", "H100"),
    ("NVIDIA H100 NVL", "9.0", "132", "nvidia-h100-nvl", "H100"),
    ("NVIDIA GH200 480GB", "9.0", "132", "nvidia-gh200", ""),
    ("NVIDIA H200", "9.0", "132", "nvidia-h200", "H200"),
    ("NVIDIA H200 NVL", "9.0", "132", "nvidia-h200-nvl", "H200"),
    ("NVIDIA B200", "10.0", "148", "nvidia-b200", "B200"),
    ("AMD Instinct MI100", "9.0", "120", "amd-mi100", "MI100"),
    ("AMD Instinct MI210", "9.0", "104", "amd-mi210", ""),
    ("AMD Instinct MI250", "9.0", "104", "amd-mi250", "MI250"),
    ("AMD Instinct MI250X", "9.0", "110", "amd-mi250x", "MI250"),
    ("AMD Instinct MI300X", "9.4", "304", "amd-mi300x", "MI300X"),
]


def x86(vendor: str, numbers: str, flags: str) -> dict[str, str]:
    name = VENDOR.get(vendor, vendor)
    return {"cpu_vendor": name, "cpu_model": "A CPU", "cpu_family_model_stepping": numbers, "cpu_flags": flags}


@pytest.mark.parametrize(("vendor", "numbers", "flags", "id"), CPUS, ids=[f"{c[3]} {c[1]}" for c in CPUS])
def test_a_cpu_is_known_by_its_numbers_and_flags(vendor, numbers, flags, id):
    found = hardware_of(CPU, x86(vendor, numbers, flags))
    assert (found.id, found.kind, found.vendor, found.model) == (id, "cpu", vendor, "A CPU")
    assert found.architecture and found.features == tuple(flags.split())
    assert found.provenance.startswith(f"CPUID says family {numbers.split('/')[0]}, model ")


@pytest.mark.parametrize(("implementer", "part", "flags", "id"), CORES, ids=[c[3] for c in CORES])
def test_an_arm_core_is_known_by_implementer_and_part(implementer, part, flags, id):
    facts = x86("", "?/?/?", flags) | {"cpu_implementer": implementer, "cpu_part": part}
    found = hardware_of(CPU, facts)
    assert (found.id, found.kind, found.vendor) == (id, "cpu", id.split("-")[0])
    assert part.removeprefix("0x").lstrip("0") in found.provenance


def test_every_family_of_the_table_has_its_test():
    assert {id for *_, id in (*CPUS, *CORES)} == {f.id for f in FAMILIES}


def test_no_numbers_belong_to_two_families():
    said = [
        (f.vendor, f.family, model, stepping)
        for f in FAMILIES
        for models in f.models
        for model in models
        for stepping in f.steppings
    ]
    assert len(said) == len(set(said))


def test_every_id_can_be_a_folder_and_the_name_of_a_metric():
    assert all(re.fullmatch(r"[a-z0-9-]+", known.id) for known in (*FAMILIES, *gpus.GPUS))


def test_what_tells_families_apart_is_collected():
    assert set(machine.FLAGS_OF_INTEREST) == cpu_families.TIER_FLAGS


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.tier in X86], ids=lambda f: f"{f.id} {f.products}")
def test_a_cap_set_by_a_hypervisor_is_said_and_makes_another_hardware(family):
    numbers = f"{family.family}/{family.models[0][0]}/{family.steppings[0]}"
    found = hardware_of(CPU, x86(family.vendor, numbers, "sse4_2"))
    assert found.id == f"{family.vendor}-{family.family}-{family.models[0][0]}-sse"
    assert "lack" in found.provenance and family.architecture in found.provenance and found.architecture == ""


def test_numbers_that_hide_newer_flags_are_not_believed():
    found = hardware_of(CPU, x86("intel", "6/167/1", AMX))
    assert (found.id, found.vendor, found.architecture) == ("intel-6-167-amx", "intel", "")
    assert found.provenance == (
        "CPUID says family 6, model 167, stepping 1 (Rocket Lake), but the flags have amx_bf16, amx_int8, amx_tile, "
        "avx512_bf16, avx512_fp16, which it has not; such flags are those of Sapphire Rapids or Emerald Rapids"
    )


def test_flags_that_no_family_has_are_said_to_be_so():
    found = hardware_of(CPU, x86("amd", "25/1/1", f"{AVX2} amx_tile"))
    assert found.id == "amd-25-1-avx2" and "no family of the table has such flags" in found.provenance


@pytest.mark.parametrize(
    ("vendor", "numbers", "id"),
    [
        ("amd", "25/255/1", "amd-25-255"),
        ("intel", "6/85/?", "intel-6-85"),  # three families, told apart by the stepping
        ("intel", "19/1/0", "intel-19-1"),
        ("CentaurHauls", "7/59/0", "centaurhauls-7-59"),
    ],
)
def test_unknown_numbers_stand_for_themselves(vendor, numbers, id):
    found = hardware_of(CPU, x86(vendor, numbers, AVX2))
    assert found.id == id and found.kind == "cpu" and "the table of CPUs does not have" in found.provenance


def test_numbers_without_flags_are_believed_and_said_to_be_without():
    found = hardware_of(CPU, {"cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": "25/1/1"})
    assert found.id == "amd-zen3" and "no flags were given" in found.provenance


@pytest.mark.parametrize(
    ("facts", "id"),
    [
        ({"cpu_vendor": ""}, "unknown"),
        ({"cpu_vendor": "", "cpu_model": "", "architecture": "arm64"}, "arm64"),
        ({"cpu_vendor": "", "cpu_model": "Apple M3", "cpu_family_model_stepping": "?/?/?"}, "apple-m3"),
        ({"cpu_vendor": "GenuineIntel"}, "unknown"),
        ({"cpu_vendor": "GenuineIntel", "cpu_family_model_stepping": "6"}, "unknown"),
        ({"cpu_vendor": "GenuineIntel", "cpu_family_model_stepping": "a/b/c", "cpu_model": "?"}, "unknown"),
        ({"cpu_implementer": "?", "cpu_part": ""}, "unknown"),
        ({"cpu_implementer": "0x41"}, "unknown"),
        ({"cpu_implementer": "0x41", "cpu_part": "0xfff"}, "arm-0xfff"),
        ({"cpu_implementer": "0x70", "cpu_part": "0x1"}, "implementer-0x70-0x001"),
        ({"gpu": "", "cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": "25/1/1"}, "amd-zen3"),
    ],
)
def test_odd_facts_give_an_honest_id_and_no_error(facts, id):
    found = hardware_of(CPU, facts)
    assert found.id == id and found.provenance


@pytest.mark.parametrize(("name", "capability", "units", "id", "board"), BOARDS, ids=[b[0] for b in BOARDS])
def test_a_gpu_is_what_its_driver_calls_it(name, capability, units, id, board):
    facts = {"gpu": name, "gpu_compute_capability": capability, "gpu_multiprocessors": units}
    found = hardware_of(CUDA, x86("amd", "25/1/1", AVX2) | facts)
    assert (found.id, found.kind, found.vendor, found.model) == (id, "gpu", id.split("-")[0], name)
    assert board == "" or found.architecture == architectures.GPUS[board]
    assert found.features == (f"compute capability {capability}", f"{units} multiprocessors")
    assert hardware_of(CUDA, {"gpu": name}).id == id  # all that a driver's file says
    assert name in found.provenance and capability in found.provenance


def test_every_gpu_of_the_table_and_of_the_emulation_has_its_test():
    assert {b[3] for b in BOARDS} == {gpu.id for gpu in gpus.GPUS}
    assert {b[4] for b in BOARDS} - {""} == set(architectures.GPUS)
    assert {gpu.architecture for gpu in gpus.GPUS} == set(architectures.ARCHITECTURES)


@pytest.mark.parametrize(
    ("facts", "id", "why"),
    [
        ({"gpu": "NVIDIA H100 PCIe", "gpu_multiprocessors": "66"}, "nvidia-h100-pcie-sm66", "but it says 66 multi"),
        (
            {"gpu": "Tesla T4", "gpu_compute_capability": "9.0", "gpu_multiprocessors": "40"},
            "tesla-t4-cc9-0-sm40",
            "has compute capability 7.5 and 40 multiprocessors, but it says compute capability 9.0",
        ),
        ({"gpu": "NVIDIA H100 80GB HBM3 MIG 3g.40gb"}, "nvidia-h100-80gb-hbm3-mig-3g-40gb", "does not have"),
        ({"gpu": "NVIDIA GeForce RTX 4090 Laptop GPU"}, "nvidia-geforce-rtx-4090-laptop-gpu", "does not have"),
        ({"gpu": "NVIDIA GeForce RTX 4090 D"}, "nvidia-geforce-rtx-4090-d", "does not have"),
    ],
)
def test_a_gpu_that_contradicts_itself_or_is_unknown_keeps_its_plain_name(facts, id, why):
    found = hardware_of(CUDA, facts)
    assert (found.id, found.kind, found.architecture) == (id, "gpu", "") and why in found.provenance


@pytest.mark.parametrize("name", architectures.GPUS)
def test_a_virtual_gpu_is_the_one_that_it_imitates_whatever_ran_it(name):
    virtual = next(p for p in CATALOGUE.values() if p.device == f"virtual {name}")
    found = hardware_of(virtual, x86("amd", "25/1/1", AVX2) | {"device": virtual.device})
    assert (found.id, found.kind, found.model) == (f"virtual-{name.lower()}", "virtual-gpu", name)
    assert found.vendor == ("amd" if name.startswith("MI") else "nvidia")
    assert found.architecture == architectures.GPUS[name] and "emulated" in found.provenance


def test_a_virtual_gpu_without_a_record_is_said_to_be_unknown():
    found = hardware_of(Platform("x", "virtual-gpu", device="virtual X9"), {})
    assert (found.id, found.vendor, found.architecture) == ("virtual-x9", "", "")


def test_what_stands_elsewhere_is_what_its_collector_declares():
    declared = hardware_of(Platform("x", "sglang", device="H100 of ours"), {"server": "sglang"})
    assert (declared.id, declared.kind) == ("h100-of-ours", "unknown")
    assert declared.provenance == "declared by whoever collected it"
    nameless = hardware_of(CUDA, x86("amd", "25/1/1", AVX2))
    assert (nameless.id, nameless.kind) == ("cuda", "unknown") and "gave no name" in nameless.provenance


def test_a_capped_platform_has_the_hardware_of_its_machine():
    here = [machine.hardware_here(p) for p in CATALOGUE.values() if p.device == "cpu"]
    assert len(set(here)) == 1 and here[0].kind == "cpu"
    capped = machine.hardware_here(replace(CPU, provenance="capped", isa_cap="avx2"))
    assert capped == here[0]


def test_an_arm_machine_gives_its_numbers_as_facts(monkeypatch):
    said = {"CPU implementer": "0x41", "CPU part": "0xd0c", "Features": f"fp {NEON} evtstrm"}
    monkeypatch.setattr(machine, "_cpuinfo", lambda: said)
    facts = machine.platform_facts(CPU)
    assert (facts["cpu_implementer"], facts["cpu_part"], facts["cpu_flags"]) == ("0x41", "0xd0c", NEON)
    assert machine.hardware_here(CPU).id == "arm-neoverse-n1"


def test_a_gpu_here_is_asked_for_its_name_without_an_engine(monkeypatch):
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: "NVIDIA H100 PCIe")
    assert machine.hardware_here(CUDA).id == "nvidia-h100-pcie"
    assert machine.hardware_here(CPU).kind == "cpu"
