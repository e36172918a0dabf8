"""A chip to compare with: an NVIDIA GPU, or a simulated one that keeps its plan to itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chip.cases import F32
from hspi.errors import PlatformError
from hspi.files import version
from hspi.numerics.architectures import UNITS
from hspi.numerics.batched import matmul_batched
from hspi.numerics.formats import format_of, round_to
from hspi.numerics.matmul import DEFAULT_PLAN, matmul
from hspi.numerics.plans import KernelPlan
from hspi.platforms.machine import has_nvidia_gpu, has_package

CAPABILITIES = {(7, 0): "volta", (7, 5): "turing", (8, 0): "ampere", (8, 6): "ampere", (8, 9): "ada", (9, 0): "hopper",
                (10, 0): "blackwell"}  # fmt: skip
TORCH_TYPES = {"fp16": "float16", "bf16": "bfloat16", "tf32": "float32", "e4m3": "float8_e4m3fn"}


@dataclass(frozen=True, slots=True)
class SimulatedChip:
    """`hspi.numerics` in the place of a GPU, to try the harness: its GEMMs follow `hidden`."""

    architecture: str
    hidden: KernelPlan = DEFAULT_PLAN
    rounds_to: str = "fp32"

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(t for a, t in UNITS if a == self.architecture)

    def facts(self) -> dict[str, str]:
        return {"gpu": f"simulated {self.architecture}", "provenance": "emulated"}

    def tile(self, a: F32, b: F32, input_type: str) -> F32:
        return matmul_batched(a, b, self.architecture, input_type)

    def gemm(self, a: F32, b: F32, input_type: str) -> tuple[F32, str]:
        out = matmul(a, b, self.architecture, input_type, plan=self.hidden)
        return (out if self.rounds_to == "fp32" else round_to(out, format_of(self.rounds_to))), self.rounds_to


@dataclass(slots=True)
class NvidiaChip:
    """The GPU of this machine. backend: `wmma` (needs nvcc; no fp8) or `triton`.

    Raises PlatformError where there is no GPU, none whose arithmetic is described, or no such backend.
    """

    backend: str = "triton"
    architecture: str = field(init=False)
    types: tuple[str, ...] = field(init=False)
    _library: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not has_nvidia_gpu():
            raise PlatformError("silicon must be an NVIDIA GPU, but none was found: try --simulate hopper")
        import torch

        capability = torch.cuda.get_device_capability()
        if capability not in CAPABILITIES:
            known = ", ".join(f"{a}.{b}" for a, b in CAPABILITIES)
            raise PlatformError(f"compute capability must be one of {known}, but got {capability}")
        self.architecture = CAPABILITIES[capability]
        has = [t for a, t in UNITS if a == self.architecture and t in TORCH_TYPES]
        self.types = tuple(t for t in has if t != "e4m3" or self.backend == "triton")
        if self.backend == "wmma":
            self._library = build_wmma(10 * capability[0] + capability[1])

    def facts(self) -> dict[str, str]:
        import torch

        return {
            "gpu": torch.cuda.get_device_name(),
            "capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "backend": self.backend,
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "triton": version("triton"),
            "driver": _driver(),
            "provenance": "real",
        }

    def tile(self, a: F32, b: F32, input_type: str) -> F32:
        import torch

        left, right = self._tensor(a, input_type), self._tensor(b, input_type)
        out = torch.empty(a.shape[0], a.shape[1], b.shape[2], dtype=torch.float32)
        if self._library is None:
            from chip.triton_tiles import run

            out = out.cuda()
            run(left.cuda(), right.cuda(), out)
            return np.asarray(out.cpu().numpy())
        sizes = (a.shape[0], a.shape[1], a.shape[2], b.shape[2])
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (left, right, out)]
        if code := getattr(self._library, f"tiles_{input_type}")(*pointers, *map(ctypes.c_int, sizes)):
            raise PlatformError(f"the tiles must run on this GPU, but CUDA gave error {code}")
        return np.asarray(out.numpy())

    def gemm(self, a: F32, b: F32, input_type: str) -> tuple[F32, str]:
        import torch

        left, right = self._tensor(a, input_type).cuda(), self._tensor(b.T, input_type).cuda().t()  # weights: (N, K)
        if input_type == "e4m3":
            one = torch.ones((), device="cuda")
            out = torch._scaled_mm(left, right, one, one, out_dtype=torch.float32, use_fast_accum=True)
            return np.asarray(out.cpu().numpy()), "fp32"
        torch.set_float32_matmul_precision("high" if input_type == "tf32" else "highest")
        out = torch.mm(left, right)
        return np.asarray(out.float().cpu().numpy()), "fp32" if input_type == "tf32" else input_type

    def _tensor(self, x: F32, input_type: str) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(getattr(torch, TORCH_TYPES[input_type]))


def backends() -> list[str]:
    """How tiles can be run here."""
    return [b for b, there in (("wmma", shutil.which("nvcc")), ("triton", has_package("triton"))) if there]


def build_wmma(sm: int) -> ctypes.CDLL:
    """Compile the CUDA kernel for sm_XX and load it. Raises PlatformError with nvcc's first line."""
    target = Path(tempfile.mkdtemp(prefix="hspi-tiles-")) / f"tiles_sm{sm}.so"
    newer, source = ["-DHSPI_SM80"] if sm >= 80 else [], Path(__file__).with_name("tiles.cu")
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{sm}", *newer, "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PlatformError(f"nvcc must compile tiles.cu for sm_{sm}, but: {done.stderr.strip().splitlines()[:1]}")
    return ctypes.CDLL(str(target))


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not shutil.which("nvidia-smi"):
        return ""
    return subprocess.run(query, capture_output=True, text=True).stdout.strip().partition("\n")[0]
