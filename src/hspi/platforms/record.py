"""What serves a model (`Platform`), what may change meanwhile (`Nuisance`), what every engine must do (`Adapter`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError

Provenance = Literal["real", "capped", "emulated"]
# Variables that hold a CPU library to an instruction set, and do nothing else.
CAPS = frozenset(
    ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR",
     "MKL_DEBUG_CPU_TYPE", "CT2_FORCE_CPU_ISA")
)  # fmt: skip
PROVENANCES = ("real", "capped", "emulated")

LogProbs = npt.NDArray[np.float32]
Context = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Platform:
    """Hardware × engine × numerics × kernels (DESIGN.md §1).

    `provenance` says what the arithmetic ran on: `real` hardware as it is; `capped`, a real CPU held to a lower ISA
    by its library's own switch; or `emulated` in software. `env` is set before the engine is imported, so each
    platform lives in a process of its own. `options` are read by the engine's adapter alone.

    `device` is what the engine wants (`cpu`, `cuda`, `virtual A100`; of a server elsewhere what its owner says).
    `hardware` is the id of the machine that answered (`platforms/hardware.py`): empty in the catalogue, and set by
    `on`, which makes the id a full one, `<hardware>/<software>`.
    """

    id: str
    engine: str
    provenance: Provenance = "real"
    device: str = "cpu"
    hardware: str = ""
    isa_cap: str = "none"
    dtype: str = "fp32"
    quantization: str = "none"
    kv_cache: str = "none"
    attention: str = "sdpa"
    compile: bool = False
    tensor_parallel: int = 1
    env: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    needs_cpu: tuple[str, ...] = ()
    needs_packages: tuple[str, ...] = ()
    extra: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.provenance not in PROVENANCES:
            raise ConfigError(f"provenance must be one of {PROVENANCES}, but got {self.provenance!r}")

    @property
    def number_format(self) -> str:
        """What rounds the answers: the quantization where there is one, else the dtype."""
        return self.dtype if self.quantization == "none" else self.quantization

    @property
    def software(self) -> str:
        """The id without its hardware: `torch-bf16` of `amd-zen3/torch-bf16`."""
        return self.id.rpartition("/")[2]

    def on(self, hardware: str) -> Platform:
        """The same software on that hardware, with its full id."""
        return replace(self, id=f"{hardware}/{self.software}", hardware=hardware)

    @property
    def recipe(self) -> tuple[object, ...]:
        """The software without the instruction set that it may use: what two machines, or a machine and a cap on it,
        can have in common."""
        env = tuple(sorted((k, v) for k, v in self.env.items() if k not in CAPS))
        options = tuple(sorted((k, str(v)) for k, v in self.options.items()))
        kernels = (self.attention, self.compile, self.tensor_parallel)
        return (self.engine, self.device, self.dtype, self.quantization, self.kv_cache, *kernels, env, options)

    def computes_as(self, other: Platform) -> bool:
        """Whether both records describe the same arithmetic: notes and requirements do not count."""
        return self._arithmetic() == other._arithmetic()

    def _arithmetic(self) -> dict[str, Any]:
        words = {"note", "extra", "needs_cpu", "needs_packages"}
        return {k: v for k, v in self.to_dict().items() if k not in words}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Platform:
        known = {f.name for f in fields(cls)}
        if "device" not in data and "hardware" in data:  # as it was called before a platform named its machine
            data = {**data, "device": data["hardware"], "hardware": ""}
        values: dict[str, Any] = {
            k: tuple(v) if k in {"needs_cpu", "needs_packages"} else v for k, v in data.items() if k in known
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Nuisance:
    """What may change without changing the platform.

    `company` is what shares the batch: `ordered` (neighbours of the probe set) or `shuffled` (drawn by `seed`).
    """

    name: str
    batch_size: int = 1
    company: Literal["ordered", "shuffled"] = "ordered"
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1:
            raise ConfigError(f"`batch_size >= 1` and `threads >= 1` must hold, but got {self}")
        if self.company not in ("ordered", "shuffled"):
            raise ConfigError(f"company must be 'ordered' or 'shuffled', but got {self.company!r}")


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether this machine can run a platform, and if not, why (one line)."""

    runnable: bool
    why_not: str = ""


@runtime_checkable
class Adapter(Protocol):
    """A model loaded in one engine on one platform. The same suite of tests runs over every implementation."""

    vocab_size: int

    def logprobs(self, contexts: list[Context], positions: int) -> LogProbs:
        """Next-token log-probabilities after each of the last `positions` tokens of each context.

        contexts: B arrays of token ids, int64, each of length >= positions; they are served together, as one batch.
        Lengths may differ: shorter ones are padded on the right, which causal attention never looks at.
        Returns float32 (B, positions, vocab_size), exact bits of what the engine computed; position -1 follows
        the whole context.
        """
        ...

    def greedy(self, contexts: list[Context], new_tokens: int) -> npt.NDArray[np.int64]:
        """Greedy continuation, int64 (B, new_tokens); ties go to the lowest id."""
        ...

    def facts(self) -> dict[str, str]:
        """Versions and device facts that travel inside the signature."""
        ...
