"""What the benchmarks share: timing on a machine that others use too, and a table of ratios."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ratio is in the words of `name`; target is "<= x" or ">= x", or empty where there is none."""

    name: str
    ours: str
    baseline: str
    ratio: float
    target: str = ""

    @property
    def met(self) -> bool | None:
        if not self.target:
            return None
        sign, _, limit = self.target.partition(" ")
        return self.ratio <= float(limit) if sign == "<=" else self.ratio >= float(limit)


CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True, slots=True)
class Timed:
    """Medians over rounds: seconds by name."""

    seconds: dict[str, float]
    rounds: dict[str, list[float]]

    def ratio(self, a: str, b: str) -> float:
        """Median over rounds of a's time over b's in the same round."""
        return median(x / y for x, y in zip(self.rounds[a], self.rounds[b], strict=True))


def timed(work: Mapping[str, Callable[[], object]], repeats: int, clock: str) -> Timed:
    """Each in turn, round by round, after one unmeasured round: a busy minute of the machine hits all alike."""
    now = CLOCKS[clock]
    rounds: dict[str, list[float]] = {name: [] for name in work}
    for i in range(repeats + 1):
        for name, call in work.items():
            began = now()
            call()
            if i:
                rounds[name].append(now() - began)
    return Timed({name: median(some) for name, some in rounds.items()}, rounds)


def parser(about: str, repeats: int) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=about)
    p.add_argument("--json", action="store_true", help="print JSON for machines")
    p.add_argument("--repeats", type=int, default=repeats, help="rounds; medians count (default: %(default)s)")
    p.add_argument("--clock", choices=list(CLOCKS), default="cpu", help="seconds of this process, or of the wall")
    return p


def show(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(r) | {"met": r.met} for r in rows], indent=1))
        return
    words = {None: "", True: "met", False: "MISSED"}
    lines = [("comparison", "ours", "baseline", "ratio", "target", "")]
    lines += [(r.name, r.ours, r.baseline, f"{r.ratio:.3g}", r.target, words[r.met]) for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
