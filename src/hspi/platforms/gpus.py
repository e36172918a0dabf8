"""The GPUs as records: by which names their drivers know them, and what each must say of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

NVIDIA_SOURCE = "NVIDIA's data sheets and architecture white papers; CUDA's table of compute capabilities"
AMD_SOURCE = (
    "AMD's data sheets; ROCm says gfx908 and gfx90a as 9.0, gfx942 as 9.4; MI250 answers as one of its two dies"
)
_MAKERS = re.compile(r"^(?:(?:NVIDIA|AMD|Tesla|Instinct|GeForce|Quadro)\s+)+")


@dataclass(frozen=True, slots=True)
class Gpu:
    """name: the board's own, which `numerics.architectures.GPUS` has where its arithmetic is emulated; pattern: what
    drivers call it, less the makers' words; multiprocessors: SMs or compute units that it says it has.
    """

    id: str
    name: str
    pattern: str
    architecture: str
    compute_capability: str
    multiprocessors: int

    @property
    def vendor(self) -> str:
        return vendor_of(self.architecture)

    @property
    def source(self) -> str:
        return AMD_SOURCE if self.vendor == "amd" else NVIDIA_SOURCE


def vendor_of(architecture: str) -> str:
    return "amd" if architecture.startswith("cdna") else "nvidia"


def find(driver_name: str) -> Gpu | None:
    """The record of what a driver calls a whole GPU; None for a part of one (MIG), a virtual one, or any other."""
    name = _MAKERS.sub("", driver_name.strip())
    return next((gpu for gpu in GPUS if re.fullmatch(gpu.pattern, name, re.IGNORECASE)), None)


GPUS = (
    Gpu("nvidia-v100-sxm", "V100", r"V100-SXM[23]-(16|32)GB", "volta", "7.0", 80),
    Gpu("nvidia-v100-pcie", "V100", r"V100-PCIE-(16|32)GB", "volta", "7.0", 80),
    Gpu("nvidia-v100s-pcie", "V100", r"V100S-PCIE-32GB", "volta", "7.0", 80),
    Gpu("nvidia-t4", "T4", r"T4", "turing", "7.5", 40),
    Gpu("nvidia-a100-sxm", "A100", r"A100-SXM4-(40|80)GB", "ampere", "8.0", 108),
    Gpu("nvidia-a100-pcie", "A100", r"A100-PCIE-(40|80)GB|A100 80GB PCIe", "ampere", "8.0", 108),
    Gpu("nvidia-a30", "A30", r"A30", "ampere", "8.0", 56),
    Gpu("nvidia-a40", "A40", r"A40", "ampere", "8.6", 84),
    Gpu("nvidia-rtx-a6000", "A6000", r"RTX A6000", "ampere", "8.6", 84),
    Gpu("nvidia-a10", "A10", r"A10", "ampere", "8.6", 72),
    Gpu("nvidia-a10g", "A10G", r"A10G", "ampere", "8.6", 80),
    Gpu("nvidia-rtx-3090", "3090", r"RTX 3090", "ampere", "8.6", 82),
    Gpu("nvidia-l4", "L4", r"L4", "ada", "8.9", 58),
    Gpu("nvidia-l40", "L40", r"L40", "ada", "8.9", 142),
    Gpu("nvidia-l40s", "L40S", r"L40S", "ada", "8.9", 142),
    Gpu("nvidia-rtx-4090", "4090", r"RTX 4090", "ada", "8.9", 128),
    Gpu("nvidia-h100-pcie", "H100", r"H100 PCIe", "hopper", "9.0", 114),
    Gpu("nvidia-h100-sxm", "H100", r"H100 80GB HBM3", "hopper", "9.0", 132),
    Gpu("nvidia-h100-nvl", "H100", r"H100 NVL", "hopper", "9.0", 132),
    Gpu("nvidia-gh200", "GH200", r"GH200 (120|480)GB", "hopper", "9.0", 132),
    Gpu("nvidia-h200", "H200", r"H200", "hopper", "9.0", 132),
    Gpu("nvidia-h200-nvl", "H200", r"H200 NVL", "hopper", "9.0", 132),
    Gpu("nvidia-b200", "B200", r"B200", "blackwell", "10.0", 148),
    Gpu("amd-mi100", "MI100", r"MI100|Arcturus GL-XL \[(AMD )?Instinct MI100\]", "cdna1", "9.0", 120),
    Gpu("amd-mi210", "MI210", r"MI210", "cdna2", "9.0", 104),
    Gpu("amd-mi250", "MI250", r"MI250", "cdna2", "9.0", 104),
    Gpu("amd-mi250x", "MI250", r"MI250X", "cdna2", "9.0", 110),
    Gpu("amd-mi300x", "MI300X", r"MI300X( OAM)?", "cdna3", "9.4", 304),
)
