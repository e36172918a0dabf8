"""Which kernel plan a virtual GPU uses for which product: eight named plans, and books that map products to plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hspi.errors import ConfigError, UnknownName
from hspi.numerics.plans import KernelPlan

# Instructions take 4 (Volta) to 32 (fp8) products, so tiles are multiples of 32 and chunks divide 4.
PLANS: dict[str, KernelPlan] = {
    "k1": KernelPlan(),
    "k2": KernelPlan(split_k=2),
    "k4": KernelPlan(split_k=4),
    "k8t": KernelPlan(split_k=8, combine="tree"),
    "i2": KernelPlan(split_k=2, split="interleaved", k_tile=32),
    "i4": KernelPlan(split_k=4, split="interleaved", k_tile=32),
    "rev": KernelPlan(order="reverse"),
    "ch2": KernelPlan(k_tile=64, chunk=2),
}


@dataclass(frozen=True, slots=True)
class PlanBook:
    """Names of plans by product. `by` maps a product to its plan; whatever it does not name takes `default`.

    A product is `lm_head`, `qk` or `pv` (attention, whose sizes follow the context), or a linear layer's weight as
    `NxK`: out × in features. `NxK#i` is the i-th weight that the model uses, if it alone is meant.
    """

    default: str = "k1"
    by: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.default, *self.by.values()):
            if name not in PLANS:
                raise UnknownName("kernel plan", name, PLANS)

    def name_of(self, product: str) -> str:
        return self.by.get(product) or self.by.get(product.partition("#")[0], self.default)

    def plan_of(self, product: str) -> KernelPlan:
        return PLANS[self.name_of(product)]

    @classmethod
    def of(cls, option: Any) -> PlanBook:
        """From a platform's `options["plan"]`: a name, or {product: name} with the default under "default".

        Raises ConfigError or UnknownName where it is neither.
        """
        if isinstance(option, str):
            return cls(option)
        if not isinstance(option, Mapping):
            raise ConfigError(f"a plan must be a name or a mapping of products to names, but got {option!r}")
        return cls(option.get("default", "k1"), {p: n for p, n in option.items() if p != "default"})
