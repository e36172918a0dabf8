"""Records, catalogue and this machine: what can be asked without importing an engine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from hspi.errors import PlatformError, UnknownName
from hspi.platforms.catalogue import CATALOGUE, get
from hspi.platforms.machine import ENGINE_MODULES, ISA_VARIABLES, apply_env, availability, platform_facts
from hspi.platforms.opening import ADAPTERS, open_adapter
from hspi.platforms.record import Platform

EVERYTHING = frozenset(
    {"sse4_1", "fma", "f16c", "avx2", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"}
)


def everything(_: str) -> bool:
    return True


def can(platform: Platform, **changed):  # a machine that has everything but what a test takes away
    machine = {"flags": EVERYTHING, "package": everything, "gpu": lambda: True, "environment": everything} | changed
    return availability(platform, **machine)


@pytest.mark.parametrize("platform", CATALOGUE.values(), ids=CATALOGUE)
def test_every_record_is_whole(platform):
    assert get(platform.id) is platform
    assert platform.engine in ADAPTERS and platform.engine in ENGINE_MODULES
    assert Platform.from_dict(platform.to_dict()) == platform
    assert can(platform).runnable
    assert (platform.provenance == "emulated") == platform.id.startswith(("emulated-", "vgpu-"))
    assert (platform.provenance == "capped") == (platform.isa_cap != "none")
    assert platform.provenance != "capped" or set(platform.env) & set(ISA_VARIABLES)


def test_no_two_records_ask_for_the_same():
    seen = [dataclasses.replace(p, id="", note="").to_dict() for p in CATALOGUE.values()]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_an_unknown_platform_is_named_with_those_that_exist():
    with pytest.raises(UnknownName, match=r"torch-fp32.*but got 'torch-fp33'"):
        get("torch-fp33")


def test_a_lacking_cpu_flag_is_named():
    why = can(get("torch-bf16-amx"), flags=EVERYTHING - {"amx_bf16"})
    assert not why.runnable and "amx_bf16" in why.why_not


def test_a_missing_package_is_named_with_its_install_command():
    why = can(get("quanto-int8"), package=lambda name: name != "optimum.quanto")
    assert not why.runnable and "pip install 'hspi[quanto]'" in why.why_not


def test_a_gpu_platform_needs_a_gpu():
    assert can(get("cuda-bf16"), gpu=lambda: False).why_not == "needs an NVIDIA GPU; none found"


def test_an_environment_that_does_not_stand_is_named_with_its_command():
    why = can(get("vllm-bf16"), environment=lambda engine: engine != "vllm")
    assert not why.runnable and why.why_not.endswith("run  make vllm")


def test_what_cannot_run_is_not_opened(tmp_path):
    missing = dataclasses.replace(get("torch-fp32"), needs_packages=("no_such_package_here",))
    with pytest.raises(PlatformError, match="no_such_package_here"):
        open_adapter(missing, tmp_path)


def test_a_cap_is_refused_once_the_engine_is_imported(monkeypatch):
    import torch  # noqa: F401

    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    with pytest.raises(PlatformError, match=r"ATEN_CPU_CAPABILITY=avx2.*before torch is imported"):
        apply_env(get("torch-fp32-avx2"))


def test_a_plain_platform_is_refused_in_a_capped_process(monkeypatch):
    import torch  # noqa: F401

    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with pytest.raises(PlatformError, match="no ATEN_CPU_CAPABILITY"):
        apply_env(get("torch-fp32"))


def test_facts_hold_the_cpu_and_the_versions():
    facts = platform_facts(get("torch-fp32-avx2"))
    assert facts["isa_cap"] == "avx2" and facts["version_torch"] and facts["cpu_model"]
    assert all(isinstance(v, str) for v in facts.values())


def test_asking_about_every_platform_imports_no_engine():
    code = (
        "import sys; from hspi.platforms.catalogue import CATALOGUE\n"
        "from hspi.platforms.machine import availability, platform_facts\n"
        "[(availability(p), platform_facts(p)) for p in CATALOGUE.values()]\n"
        f"print([m for m in {sorted({*ENGINE_MODULES.values(), 'transformers'})} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
