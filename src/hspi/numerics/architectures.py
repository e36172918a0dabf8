"""One record for each (architecture, input type) of a GPU matrix unit, and the GPUs that carry it.

The semantics are those of MMA-Sim (arXiv 2511.10909), with the group widths of arXiv 2403.00232 and the accumulator
widths of arXiv 2512.07004. None of them has been compared with silicon by this project.

Disputed: revisions of the published model (github.com/microsoft/MMA-Sim) contradict each other. No constant here was
changed for that, since only a chip can settle it. Where these records follow `mmasim/simulator` at 16a0188, the later
`src/mmasim` (`amd/sim.py` at e11f6a7, `arithmetic/fdpa.py` at c87cb7f) has
- CDNA1: the four (bf16: two) products and c added exactly and rounded once, where here each node of a tree is rounded:
  any sum may differ in its last bit;
- a zero product counted as 2^-126 whatever its other operand, where here the zero operand is -126 and the other one's
  exponent is added (16a0188 counts it as -999): bits differ only next to a huge operand or far below 2^-90;
- CDNA3: the sum of products and c floored to 31 bits below its own leading bit, where here the products' sum is floored
  to 2^(me - 31) before c is added: bits differ after cancellation, and on ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hspi.errors import ConfigError, UnknownName
from hspi.numerics.formats import Format, format_of

Kind = Literal["truncating", "tree", "two_stage"]
_MMASIM = "arXiv 2511.10909"
_WIDTHS = "arXiv 2511.10909, 2512.07004, 2403.00232"


@dataclass(frozen=True, slots=True)
class Unit:
    """The arithmetic of one matrix unit.

    kind:      `truncating` (NVIDIA: aligned, truncated, added exactly, rounded toward zero), `tree` (CDNA1/2: a
               balanced tree of fp32 additions rounded to nearest even) or `two_stage` (CDNA3: products, then c).
    step:      products that one step adds; an instruction is `steps` steps in sequence.
    fraction:  F: terms are truncated to multiples of 2^(e − F), e the step's exponent.
    sum_fraction: `two_stage` alone: the products' sum is floored to 2^(me − sum_fraction).
    result_bits: mantissa bits of the result kept (23 is fp32, 13 the fp8 units with a narrow accumulator).
    zero_exponent: what a zero operand (and a zero c) counts as.
    flush:     subnormal inputs, c and nodes become zero (CDNA2).
    parity:    even and odd products are aligned apart, and a far smaller c is dropped (CDNA3 fp8).
    """

    architecture: str
    input_type: str
    kind: Kind
    step: int
    steps: int
    fraction: int = 0
    sum_fraction: int = 0
    result_bits: int = 23
    zero_exponent: int = -126
    flush: bool = False
    parity: bool = False
    instruction: str = ""
    source: str = _WIDTHS

    @property
    def instruction_k(self) -> int:
        return self.step * self.steps

    @property
    def format(self) -> Format:
        return format_of(self.input_type)

    @property
    def arithmetic(self) -> tuple[object, ...]:
        """What decides the bits of an in-order K loop: not the instruction's length, for its steps are sequential."""
        constants = (self.kind, self.step, self.fraction, self.sum_fraction, self.result_bits, self.zero_exponent)
        return (*constants, self.flush, self.parity, self.format.mantissa_bits, self.format.min_exponent)


def _nvidia(architecture: str, input_type: str, step: int, steps: int, fraction: int, **more: object) -> Unit:
    return Unit(architecture, input_type, "truncating", step, steps, fraction, **more)  # type: ignore[arg-type]


def _sixteen(architecture: str, step: int, steps: int, fraction: int, instruction: str) -> tuple[Unit, ...]:
    return tuple(
        _nvidia(architecture, kind, step, steps, fraction, instruction=instruction) for kind in ("fp16", "bf16")
    )


_UNITS = (
    _nvidia("volta", "fp16", 4, 1, 23, instruction="mma m8n8k4"),
    _nvidia("turing", "fp16", 8, 1, 24, instruction="mma m16n8k8"),
    *_sixteen("ampere", 8, 2, 24, "mma m16n8k16"),
    _nvidia("ampere", "tf32", 4, 2, 24, instruction="mma m16n8k8"),
    *_sixteen("ada", 8, 2, 24, "mma m16n8k16"),
    _nvidia("ada", "tf32", 4, 2, 24, instruction="mma m16n8k8"),
    _nvidia("ada", "e4m3", 16, 2, 13, result_bits=13, instruction="mma m16n8k32"),
    *_sixteen("hopper", 16, 1, 25, "wgmma k16"),
    _nvidia("hopper", "tf32", 8, 1, 25, instruction="wgmma k8"),
    _nvidia("hopper", "e4m3", 32, 1, 13, result_bits=13, instruction="wgmma k32"),
    *_sixteen("blackwell", 16, 1, 25, "tcgen05.mma k16"),
    _nvidia("blackwell", "tf32", 8, 1, 25, instruction="tcgen05.mma k8"),
    _nvidia("blackwell", "e4m3", 32, 1, 25, instruction="tcgen05.mma k32"),
    Unit("cdna1", "fp16", "tree", 4, 4, instruction="v_mfma_f32_16x16x16f16", source=_MMASIM),
    Unit("cdna1", "bf16", "tree", 2, 4, instruction="v_mfma_f32_16x16x8bf16", source=_MMASIM),
    Unit("cdna2", "fp16", "tree", 4, 4, flush=True, instruction="v_mfma_f32_16x16x16f16", source=_MMASIM),
    Unit("cdna2", "bf16", "tree", 4, 4, flush=True, instruction="v_mfma_f32_16x16x16bf16_1k", source=_MMASIM),
    *(
        Unit("cdna3", kind, "two_stage", step, 2, 24, 31, parity=kind == "e4m3fnuz", instruction=name, source=_MMASIM)
        for kind, step, name in (
            ("fp16", 8, "v_mfma_f32_16x16x16_f16"),
            ("bf16", 8, "v_mfma_f32_16x16x16_bf16"),
            ("xf32", 4, "v_mfma_f32_16x16x8_xf32"),
            ("e4m3fnuz", 16, "v_mfma_f32_16x16x32_fp8_fp8"),
        )
    ),
)
UNITS = {(u.architecture, u.input_type): u for u in _UNITS}
ARCHITECTURES = tuple(dict.fromkeys(u.architecture for u in _UNITS))
GPUS = {
    "V100": "volta",
    "T4": "turing",
    "A100": "ampere",
    "A40": "ampere",
    "A6000": "ampere",
    "L40S": "ada",
    "4090": "ada",
    "H100": "hopper",
    "H200": "hopper",
    "B200": "blackwell",
    "MI100": "cdna1",
    "MI250": "cdna2",
    "MI300X": "cdna3",
}


def unit(architecture: str, input_type: str) -> Unit:
    """The record of a matrix unit; UnknownName or ConfigError where there is none."""
    if architecture not in ARCHITECTURES:
        raise UnknownName("architecture", architecture, ARCHITECTURES)
    if (architecture, input_type) not in UNITS:
        has = ", ".join(t for a, t in UNITS if a == architecture)
        raise ConfigError(f"input type of {architecture} must be one of {has}, but got {input_type!r}")
    return UNITS[architecture, input_type]
