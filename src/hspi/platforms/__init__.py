"""What serves a model: records, the catalogue, this machine, and one adapter for each engine (imported late)."""

from hspi.platforms.catalogue import CATALOGUE, get
from hspi.platforms.machine import apply_env, availability, platform_facts
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Adapter, Availability, Nuisance, Platform

__all__ = [
    "CATALOGUE", "Adapter", "Availability", "Nuisance", "Platform",
    "apply_env", "availability", "get", "open_adapter", "platform_facts",
]  # fmt: skip
