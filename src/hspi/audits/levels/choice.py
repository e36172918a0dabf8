"""Every level, the strongest first, and the one that an endpoint and the material allow."""

from __future__ import annotations

from hspi.audits.discovery import Capabilities
from hspi.audits.levels.agreement import Rounded, Text
from hspi.audits.levels.distribution import Distribution
from hspi.audits.levels.level import Level, Offer
from hspi.audits.levels.nothing import Nothing
from hspi.audits.levels.replay import Replay
from hspi.audits.levels.residual import Residual
from hspi.audits.material import Material

LEVELS: tuple[type[Level], ...] = (Replay, Rounded, Text, Residual, Distribution, Nothing)


def choose(cap: Capabilities, material: Material) -> Level:
    """The first of LEVELS that takes what is offered; the last takes anything."""
    offer = Offer(cap, material)
    return next(level for kind in LEVELS if (level := kind.of(offer)) is not None)
