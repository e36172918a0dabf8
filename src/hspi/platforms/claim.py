"""What a provider claims: software, hardware, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hspi.errors import ConfigError
from hspi.platforms import catalogue
from hspi.platforms.record import Platform


@dataclass(frozen=True, slots=True)
class Claim:
    """software: a platform's id without its hardware, or a verdict's name of a class; empty for any. hardware: a
    pattern (`nvidia-h100-*`); empty for any, and then neither hardware nor ISA speaks against the claim.
    """

    software: str = ""
    hardware: str = ""

    @classmethod
    def parse(cls, platform: str | None, hardware: str | None = None) -> Claim | None:
        """From `torch-bf16`, `amd-zen4/torch-bf16` or a hardware alone; None without any. Raises ConfigError where
        two hardwares are named, or nothing is."""
        if platform is None and hardware is None:
            return None
        own, _, software = (platform or "").rpartition("/")
        if own and hardware and own != hardware:
            raise ConfigError(f"a claim must name one hardware, but it names {own!r} and {hardware!r}")
        if not (software or own or hardware):
            raise ConfigError("a claim must name software, hardware or both, but it is empty")
        return cls(software, own or hardware or "")

    def __str__(self) -> str:
        return "/".join(filter(None, [self.hardware, self.software])) if self.software else f"{self.hardware}/*"

    def record(self, candidates: Sequence[Platform]) -> Platform | None:
        """The claimed software's record, from the candidates or the catalogue; None where neither knows it."""
        found = next((p for p in candidates if p.software == self.software), None)
        return found or catalogue.CATALOGUE.get(self.software)

    def covers(self, candidates: Sequence[Platform]) -> list[int]:
        """The candidates that are what is claimed.

        Without hardware in the claim, a capped platform of the same software is one: it answers as that software would
        on a CPU that has no more than the cap.
        """
        if self.hardware:
            return [
                i
                for i, p in enumerate(candidates)
                if fnmatchcase(p.hardware, self.hardware) and self.software in ("", p.software)
            ]
        record = self.record(candidates)
        free = record is not None and record.isa_cap == "none"
        return [
            i
            for i, p in enumerate(candidates)
            if self.software in (p.software, p.id)
            or (free and p.isa_cap != "none" and record is not None and p.recipe == record.recipe)
        ]
