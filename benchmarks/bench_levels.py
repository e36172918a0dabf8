"""What the levels below exact replay can tell, and how often they accuse wrongly, on the pipeline's own signatures.

`text` and `rounded`: the library without one batch class of each platform that has several, which then answers the test
probes in two orders; α = 0.01. An exclusion alone accuses nobody: something else must fit (`detectors/grounds.py`).
`residual`: the number format by a classifier trained without the audited model (and, with --platforms, without the
audited platform), 64 probes, three draws of each setting.

Example:  python benchmarks/bench_levels.py --features data/features
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from hspi import zoo
from hspi.audits.levels.agreement import Agreement, RoundedScorer, Symbols, TextScorer
from hspi.audits.levels.residual import PROBES
from hspi.detectors.calibration import Calibration
from hspi.detectors.detector import Detector
from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import BITS, BLOCKS, Formats, NumberFormat, SampleBench, format_of
from hspi.evidence.aligned import ABSENT
from hspi.evidence.explained import explained_statistics
from hspi.evidence.library import Library, features

ALPHA, K, ORDERS, DRAWS = 0.01, 20, 2, 3


def scorers(detector: Detector, model: str, seed: int) -> Iterator[tuple[str, Agreement]]:
    usable = np.ones(len(detector.library(model).data.probes), bool)
    ref = zoo.resolve(model)
    tokenizer = zoo.load_tokenizer(ref)
    texts = [tokenizer.decode([i]) for i in range(ref.vocab_size)]
    yield "text", TextScorer(detector, model, seed, Symbols(texts, tokenizer.all_special_ids), usable)
    for decimals in (1, 2, 3, 4):
        yield f"rounded to {decimals}", RoundedScorer(detector, model, K, seed, decimals, usable)


def sequential(library: Library, seed: int, held: int, counts: dict[str, Counter[str]]) -> None:
    """Adds to `counts`, by level: audits, exclusions of the truth, and (served, claimed) classes that came apart."""
    data, classes = library.data, library.classes
    several = data.present.sum(axis=1) > 1
    arrays: dict[str, Any] = {n: getattr(data, n).copy() for n in ("logprobs", "rank", "raw")}
    for array, empty in zip(arrays.values(), (np.nan, ABSENT, np.nan), strict=True):
        array[several, held] = empty
    part = replace(data, complete=[False] * len(data.platforms), **arrays)
    trees = Boosted()
    bare = Detector(trees, NumberFormat(trees), Calibration())
    detectors = [bare.with_library(replace(library, data=d)) for d in (data, part)]
    family = [format_of(p) for p in data.platforms]
    label, rng = np.asarray(classes.label), np.random.default_rng(0)
    for (name, full), (_, scorer) in zip(*(scorers(b, data.model, seed) for b in detectors), strict=True):
        pool = np.asarray([i for i in scorer.split.test if scorer.asks(int(i))])
        for i in np.flatnonzero(data.present[:, held]):
            for at in (rng.permutation(pool) for _ in range(ORDERS)):
                highest = scorer.processes(scorer.views(full.own(int(i), held, at), at)).max(axis=1)
                out = highest >= -np.log(ALPHA)
                counts[name].update(audits=1, excluded=int(out[label[i]]))
                for c in set(range(classes.count)) - {int(label[i])}:
                    alike = family[i] in {family[j] for j in np.flatnonzero(label == c)}
                    kind = "same format" if alike else "other format"
                    counts[name].update({kind: 1, f"{kind} apart": int(out[c])})


def residual(benches: list[SampleBench], drop_platforms: bool) -> tuple[Counter[str], dict[tuple[str, str], list[int]]]:
    counts: Counter[str] = Counter()
    excluded: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    formats = sorted({f for b in benches for f in b.formats})
    for held, bench in enumerate(benches):
        others = [b for i, b in enumerate(benches) if i != held]
        of_all = None if drop_platforms else fitted(others, None)
        for i, platform in enumerate(bench.data.platform_ids()):
            model = of_all or fitted(others, platform)
            for setting in np.flatnonzero(bench.data.present[i]):
                found = explained_statistics(bench.data, i, int(setting), K)
                rng = np.random.default_rng(int(setting))
                for _ in range(DRAWS):
                    told = model.of_statistics(found[rng.permutation(len(found))[:PROBES]])
                    count(told, bench.formats[i], formats, counts, excluded)
    return counts, excluded


def count(
    told: Formats, truth: str, formats: list[str], counts: Counter[str], excluded: dict[tuple[str, str], list[int]]
) -> None:
    name = "none" if told.found is None else "right" if told.found == truth else "wrong"
    counts.update(audits=1, **{name: 1}, false_contradictions=int(told.excludes(truth)))
    for claimed in formats:
        if claimed != truth and BITS[truth] <= BITS[claimed]:
            excluded[truth, claimed][0] += told.excludes(claimed)
            excluded[truth, claimed][1] += 1


def fitted(benches: list[SampleBench], without: str | None) -> NumberFormat:
    xs, ys = [], []
    for i, b in enumerate(benches):
        names = [f"{f} {p}" for f, p in zip(b.formats, b.data.platform_ids(), strict=True)]
        x, y, _ = b.training("residual", names, b.settings, i)
        keep = np.asarray([without is None or name.split()[1] != without for name in y])
        xs.append(x[keep])
        ys.append([name.split()[0] for name in y[keep]])
    return NumberFormat(Boosted().fit(np.concatenate(xs), np.concatenate(ys)))


def main(folder: str, seed: int, platforms: bool) -> None:
    loaded = features(folder)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for library in loaded:
        sequential(library, seed, 0, counts)
    for name, c in counts.items():
        apart = ", ".join(f"{k} {c[f'{k} apart'] / max(c[k], 1):.3f}" for k in ("other format", "same format"))
        print(f"{name:14} truth excluded {c['excluded']} times in {c['audits']} audits; classes told apart: {apart}")
    benches = [SampleBench(library, seed) for library in loaded]
    for drop in [False, True] if platforms else [False]:
        c, excluded = residual(benches, drop)
        print(
            f"residual, {PROBES} probes in {BLOCKS} parts, model{' and platform' if drop else ''} left out: {dict(c)}"
        )
        for (served, claimed), (n, of) in sorted(excluded.items()):
            print(f"  served {served:9} claimed {claimed:9} contradicted {n / of:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="data/features")
    parser.add_argument("--seed", type=int, default=1, help="Of the split of probes, as in params.yaml.")
    parser.add_argument("--platforms", action="store_true", help="Leave the audited platform out too: minutes.")
    a = parser.parse_args()
    main(a.features, a.seed, a.platforms)
