"""What this machine is, which platforms it can run, and the environment that a platform must find before its engine."""

from __future__ import annotations

import os
import platform as host
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import util
from pathlib import Path

from hspi.errors import MissingExtra, PlatformError
from hspi.files import version
from hspi.platforms.hardware import Hardware, hardware_of
from hspi.platforms.record import Availability, Platform
from hspi.platforms.servers import environments

# Every variable by which a CPU library picks its code paths. A platform owns all of them: one that it does not name
# is removed, so that no platform inherits another's cap.
ISA_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "CT2_FORCE_CPU_ISA",
    "CT2_USE_MKL",
    "CT2_USE_EXPERIMENTAL_PACKED_GEMM",
    "CUBLAS_WORKSPACE_CONFIG",
)

# The module that reads the variables, once, when it is imported.
ENGINE_MODULES = {
    "pytorch": "torch",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "ctranslate2": "ctranslate2",
    "virtual-gpu": "torch",
    "vllm": "",  # servers are processes of their own, and read their own environment
    "llama.cpp": "",
}

FLAGS_OF_INTEREST = (
    "sse4_2", "avx", "fma", "avx2", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

LIBRARIES = (
    "torch", "transformers", "onnx", "onnxruntime", "openvino", "ctranslate2", "torchao", "optimum-quanto",
    "bitsandbytes", "gfloat", "ml_dtypes", "numpy",
)  # fmt: skip


@cache
def _cpuinfo() -> dict[str, str]:
    """First processor of /proc/cpuinfo; empty where the file does not exist."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU, as Linux spells them."""
    cpu = _cpuinfo()
    return frozenset(cpu.get("flags", cpu.get("Features", "")).split())


def has_nvidia_gpu() -> bool:
    """Whether the kernel has an NVIDIA GPU to offer; asks no library."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/gpus").exists()


def has_package(module: str) -> bool:
    """Whether `module` could be imported; imports at most its parent."""
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def availability(
    platform: Platform,
    flags: frozenset[str] | None = None,
    package: Callable[[str], bool] = has_package,
    gpu: Callable[[], bool] = has_nvidia_gpu,
    environment: Callable[[str], bool] = environments.stands,
) -> Availability:
    """Whether this machine can run `platform`, and if not, the first reason. Imports no engine.

    flags, package, gpu, environment: stand in for this machine's own, to ask about another one.
    """
    if platform.device == "cuda" and not gpu():
        return Availability(False, "needs an NVIDIA GPU; none found")
    flags = cpu_flags() if flags is None else flags
    if lacking := [f for f in platform.needs_cpu if f not in flags]:
        return Availability(False, f"needs CPU flag {', '.join(lacking)}, which this CPU lacks")
    if missing := [m for m in platform.needs_packages if not package(m)]:
        return Availability(False, str(MissingExtra(missing[0], platform.extra)))
    if not environment(platform.engine):
        return Availability(False, environments.why_not(platform.engine))
    if platform.compile and platform.device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return Availability(False, "needs a C++ compiler (g++, or the one named by CXX); none found")
    return Availability(True)


def apply_env(platform: Platform) -> None:
    """Puts the platform's variables into this process, and takes away every cap that it does not name.

    Raises PlatformError when the engine was imported under other values: it read them then, once and for all.
    """
    if not ENGINE_MODULES[platform.engine]:
        return
    wanted = {name: platform.env.get(name) for name in (*ISA_VARIABLES, *platform.env)}
    wrong = {name: value for name, value in wanted.items() if os.environ.get(name) != value}
    module = ENGINE_MODULES[platform.engine]
    if wrong and module in sys.modules:
        asked = ", ".join(f"{name}={value}" if value else f"no {name}" for name, value in wrong.items())
        raise PlatformError(f"{platform.id} needs {asked} before {module} is imported, but it already is")
    for name, value in wrong.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def hardware_here(platform: Platform) -> Hardware:
    """The hardware that answers where this machine runs the platform. Imports no engine."""
    gpu = {"gpu": nvidia_gpu()} if platform.device == "cuda" else {}
    return hardware_of(platform, {**platform_facts(platform), **gpu})


def nvidia_gpu() -> str:
    """What the driver calls the first NVIDIA GPU. Raises PlatformError where there is none that it names."""
    for about in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in about.read_text().splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    if tool := shutil.which("nvidia-smi"):  # containers may hide /proc/driver
        asked = [tool, "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    raise PlatformError("an NVIDIA GPU must be there to be named, but the driver shows none")


def platform_facts(platform: Platform) -> dict[str, str]:
    """The host as it is, for a signature's metadata: CPU, its flags of interest, OS and library versions."""
    cpu = _cpuinfo()
    flags = cpu_flags()
    facts = {
        "cpu_vendor": cpu.get("vendor_id", ""),
        "cpu_model": cpu.get("model name", host.processor()),
        "cpu_family_model_stepping": "/".join(cpu.get(k, "?") for k in ("cpu family", "model", "stepping")),
        "cpu_flags": " ".join(f for f in FLAGS_OF_INTEREST if f in flags),
        "cpu_count": str(os.cpu_count()),
        "architecture": host.machine(),
        "os": host.platform(),
        "python": host.python_version(),
        "isa_cap": platform.isa_cap,
    }
    arm = {"cpu_implementer": "CPU implementer", "cpu_part": "CPU part"}  # there is no CPUID
    facts |= {name: cpu[key] for name, key in arm.items() if key in cpu}
    return facts | {f"version_{name}": found for name in LIBRARIES if (found := version(name))}
