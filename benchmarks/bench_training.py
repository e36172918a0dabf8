"""Training and scoring against the paper's detector: LinearSVC one-vs-one on split floats, as published.

Both learn the same platforms of one model and are scored on prompts that neither saw: the paper's in the first batch
class of each, as the protocol has it (`evaluation/paper.py`), ours in every one. Evidence extraction counts on both
sides. Target: trained at least ten times as fast, at higher accuracy.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timing import CLOCKS, Row, parser, show

from hspi import params
from hspi.detectors.estimators import Boosted, HspiLd
from hspi.detectors.number_format import SampleBench
from hspi.detectors.training import Bench, fit_verifier
from hspi.evaluation.paper import PaperBench
from hspi.evaluation.replay import score_samples
from hspi.evidence.library import Library, features


@dataclass(frozen=True, slots=True)
class Result:
    training: float  # seconds, evidence included
    scoring: float  # seconds for each sample
    accuracy: float


def clocked(now: Callable[[], float], work: Callable[[], object]) -> tuple[float, object]:
    began = now()
    return_value = work()
    return now() - began, return_value


def main() -> None:
    p = parser(__doc__ or "", repeats=1)
    p.add_argument("--features", type=Path, default=Path("data/features"))
    p.add_argument("--model", default="llama")
    p.add_argument("--platforms", type=int, default=8, help="how many, by name (default: %(default)s)")
    show(compare(args := p.parse_args()), args.json)


def compare(args: Namespace) -> list[Row]:
    data = next(x.data for x in features(args.features) if x.model == args.model)
    data = data.only(list(range(min(args.platforms, len(data.platforms)))))
    known = params.load()
    seed, k = known.evaluation.seed, known.evaluation.top_k
    library = Library.measured(data, seed, k)
    classes, now = library.classes, CLOCKS[args.clock]

    def paper() -> Result:
        made, bench = clocked(now, lambda: PaperBench(library, seed))
        assert isinstance(bench, PaperBench)
        x, y, _ = bench.samples(bench.train)
        fitted, detector = clocked(now, lambda: HspiLd(rotate=False).fit(x, y))
        x, y, _ = bench.samples(bench.test)
        scored, answers = clocked(now, lambda: detector.predict(x))  # type: ignore[attr-defined]
        right = np.asarray(answers == y, float)
        return Result(made + fitted, scored / len(x), macro(right, y))

    def residual() -> Result:
        made, bench = clocked(now, lambda: SampleBench(library, seed))
        assert isinstance(bench, SampleBench)
        x, y, _ = bench.training("residual", bench.names, bench.settings, 0)
        fitted, detector = clocked(now, lambda: Boosted().fit(x, y))
        x, y, *_ = bench.test("residual", bench.names, bench.settings, 0)
        scored, answers = clocked(now, lambda: detector.predict(x))  # type: ignore[attr-defined]
        return Result(made + fitted, scored / len(x), macro(np.asarray(answers == y, float), y))

    def replay() -> Result:
        made, bench = clocked(now, lambda: Bench.of(library, seed))
        assert isinstance(bench, Bench)
        fitted, verifier = clocked(now, lambda: fit_verifier([bench]))
        assert isinstance(verifier, Boosted)
        scored, part = clocked(now, lambda: score_samples(verifier, bench, 32, k, data.rows))
        return Result(made + fitted, scored / len(part.truth), macro(part.right, part.truth))  # type: ignore[attr-defined]

    theirs = paper()
    about = f"{args.model}, {len(data.platforms)} platforms, {classes.count} classes"
    rows = []
    for name, found in (("residual", residual()), ("replay", replay())):
        ours, base = f"{found.training:.2f} s", f"{theirs.training:.2f} s"
        rows.append(Row(f"training, HSPI-LD / {name}: {about}", ours, base, theirs.training / found.training, ">= 10"))
        ours, base = (f"{1e3 * r.scoring:.2f} ms/sample" for r in (found, theirs))
        rows.append(Row(f"scoring, HSPI-LD / {name}", ours, base, theirs.scoring / found.scoring))
        ours, base = f"{found.accuracy:.3f}", f"{theirs.accuracy:.3f}"
        rows.append(Row(f"macro accuracy, {name} / HSPI-LD", ours, base, found.accuracy / theirs.accuracy, ">= 1"))
    return rows


def macro(right: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([right[truth == name].mean() for name in np.unique(truth)]))


if __name__ == "__main__":
    main()
