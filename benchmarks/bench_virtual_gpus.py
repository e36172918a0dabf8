"""How well are emulated arithmetic classes told apart, and what does not knowing the kernel plan cost?

    python benchmarks/bench_virtual_gpus.py --models llama --dtypes fp16 bf16 tf32 fp8

Writes reports/virtual_gpus.json and .csv after each part, and prints the tables. Everything here is emulated:
observations and candidates run on the same virtual GPUs, none of which has been compared with silicon.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from plan_search.search import Answers, search
from virtual_verdicts import verdicts
from virtual_world import FOREIGN, OWN, World

from hspi.detectors.virtual_families import best_of, credit
from hspi.files import whole, write_json
from hspi.platforms.virtual.catalogue import VIRTUAL, arithmetic_class
from hspi.platforms.virtual.plans import PlanBook
from hspi.quiet import be_quiet

SIZES = ((32, 20), (8, 20), (2, 20), (1, 20), (32, 5), (8, 5))
KINDS = ("uniform", "by product", "foreign")


@dataclass(frozen=True, slots=True)
class Figure:
    """accuracy between classes with its 95 % interval (bootstrap over `truths`, the independent runs), and chance."""

    model: str
    dtype: str
    condition: str
    probes: int
    top_k: int
    accuracy: float
    low: float
    high: float
    chance: float
    truths: int
    samples: int


def accuracy(world: World, condition: str, cases: list[tuple[int, Answers, list[tuple[int, Answers]]]]) -> list[Figure]:
    """cases: true class, observation, candidates with their classes."""
    rng, figures = np.random.default_rng(0), []
    for n, k in SIZES:
        rows = []
        for truth, seen, candidates in cases:
            by_probe = world.score(seen, [c for _, c in candidates], k)
            samples = draws(len(world.contexts), n, rng)
            scores = by_probe[:, samples].mean(axis=2).T
            found = best_of(scores, [world.names[c] for c, _ in candidates])
            where = found.names.index(world.names[truth])
            rows.append(credit(found.score, np.full(len(samples), where)).mean())
        figures.append(figure(world, condition, n, k, np.array(rows), len(cases) * len(samples), rng))
    return figures


def figure(world: World, condition: str, n: int, k: int, rows: Any, samples: int, rng: np.random.Generator) -> Figure:
    means = rng.choice(rows, (2000, len(rows))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    if rows.min() == rows.max():  # no spread to draw from: the rule of three
        low, high = max(0.0, rows[0] - 3 / len(rows)), min(1.0, rows[0] + 3 / len(rows))
    mean, low, high = (round(float(v), 4) for v in (rows.mean(), low, high))
    chance = round(1 / len(world.names), 4)
    return Figure(world.model, world.dtype, condition, n, k, mean, low, high, chance, len(rows), samples)


def draws(size: int, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Disjoint samples of n probes, at most 16: (B, n)."""
    count = max(1, min(16, size // n))
    return rng.permutation(size)[: count * n].reshape(count, n)


def without(library: dict[tuple[int, str], Answers], name: str) -> list[tuple[int, Answers]]:
    return [(c, x) for (c, n), x in library.items() if n != name]


def tables(world: World, books: int) -> list[Figure]:
    library, each = world.library(), list(enumerate(world.architectures))
    every = [(c, x) for (c, _), x in library.items()]
    only = [(c, x) for (c, n), x in library.items() if n == "k1"]
    foreign = [(c, world.run(a, PlanBook(n)), every) for c, a in each for n in FOREIGN]
    mixed = [(c, world.run(a, world.mixed_book(c, i)), every) for c, a in each for i in range(books)]
    layered = [(c, world.run(a, world.layered_book(c, i)), every) for c, a in each for i in range(books)]
    return [
        *accuracy(world, "plan in the library", [(c, x, every) for (c, _), x in library.items()]),
        *accuracy(world, "plan left out", [(c, x, without(library, n)) for (c, n), x in library.items()]),
        *accuracy(world, "library of one plan", [(c, x, only) for (c, n), x in library.items() if n != "k1"]),
        *accuracy(world, "foreign plan", foreign),
        *accuracy(world, "plan differs by product", mixed),
        *accuracy(world, "plan differs by layer", layered),
    ]


@dataclass(frozen=True, slots=True)
class Case:
    """A truth to be found: its class and book, and the library that the nearest candidate is taken from."""

    truth: int
    book: PlanBook
    library: list[tuple[int, Answers]]


def cases_of(world: World, kind: str, i: int) -> list[Case]:
    """The i-th observation of each class."""
    library = world.library()
    every = [(c, x) for (c, _), x in library.items()]
    out = []
    for c in range(len(world.names)):
        if kind == "uniform":  # the search knows this plan, the library does not
            name = OWN[1 + (c + 3 * i) % (len(OWN) - 1)]
            out.append(Case(c, PlanBook(name), without(library, name)))
        elif kind == "foreign":
            out.append(Case(c, PlanBook(list(FOREIGN)[(c + i) % len(FOREIGN)]), every))
        else:
            out.append(Case(c, world.mixed_book(c, i), every))
    return out


def searches(world: World, count: int, kind: str, learn: int, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Figures over more and more observations, `count` of each class in the end, from those that `rows` holds. What an
    observation is made of is run beside the workbench, so that no search starts from its own truth."""
    for i in range(count):
        for case in cases_of(world, kind, i)[max(0, len(rows) - i * len(world.names)) :]:
            rows.append(found_of(world, case, learn))
            print(f"{world.model} {world.dtype} {kind}", json.dumps(rows[-1]), flush=True)
            world.save()
            yield summary(world, rows)


def found_of(world: World, case: Case, learn: int) -> dict[str, Any]:
    """Nearest candidate, plan search and known plan on one observation: every probe of this world, top-20."""
    began, runs = time.process_time(), world.bench.runs
    answers = world.run(world.architectures[case.truth], case.book)
    best = search(world.bench, world.seen(answers, 20), world.architectures, OWN, learn=learn)
    winners = [e.architecture for e in best if e.score == best[0].score]
    seconds, runs = time.process_time() - began, world.bench.runs - runs
    known = [(c, world.run(a, case.book)) for c, a in enumerate(world.architectures)]
    return {
        "truth": world.names[case.truth],
        "nearest candidate": nearest(world, case.truth, answers, case.library),
        "plan search": (world.architectures[case.truth] in winners) / len(winners),
        "plan known": nearest(world, case.truth, answers, known),
        "equal": round(best[0].equal, 3),
        "runs": runs,
        "seconds": round(seconds, 1),
    }


def nearest(world: World, truth: int, answers: Answers, candidates: list[tuple[int, Answers]]) -> float:
    scores = world.score(answers, [x for _, x in candidates], 20).mean(axis=1)[None]
    found = best_of(scores, [world.names[c] for c, _ in candidates])
    return float(credit(found.score, np.array([found.names.index(world.names[truth])]))[0])


def summary(world: World, rows: list[dict[str, Any]]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    out: dict[str, Any] = {
        name: asdict(figure(world, name, len(world.contexts), 20, np.array([r[name] for r in rows]), len(rows), rng))
        for name in ("nearest candidate", "plan search", "plan known")
    }
    before, after, known = (out[n]["accuracy"] for n in out)
    return {
        **out,
        "share of the loss won back": round((after - before) / (known - before), 3) if known > before else None,
        "every bit explained": sum(r["equal"] == 1.0 for r in rows),
        "runs": sum(r["runs"] for r in rows),
        "observations": rows,
        "cpu seconds": round(sum(r["seconds"] for r in rows), 1),
    }


def inseparable() -> list[dict[str, Any]]:
    """GPUs that share arithmetic in a number type: by the records, no observation tells them apart."""
    rows: dict[tuple[str, str], list[str]] = {}
    for p in VIRTUAL:
        if p.id.endswith("-k1"):
            kind = p.id.split("-")[-2]
            rows.setdefault((kind, arithmetic_class(p)), []).append(p.device.removeprefix("virtual "))
    return [{"dtype": d, "class": c, "gpus": g} for (d, c), g in rows.items()]


def read(folder: Path) -> dict[str, Any]:
    """What earlier runs found; each part is replaced when it is measured again."""
    path = folder / "virtual_gpus.json"
    found: dict[str, Any] = (
        json.loads(path.read_text("utf-8")) if path.exists() else {"accuracy": [], "plan_search": {}}
    )
    return found | {"provenance": "emulated", "inseparable": inseparable()}


def write(folder: Path, report: dict[str, Any]) -> None:
    write_json(folder / "virtual_gpus.json", report, sort_keys=False)
    with whole(folder / "virtual_gpus.csv") as temporary, temporary.open("w", newline="") as f:
        rows = csv.DictWriter(f, list(Figure.__dataclass_fields__))
        rows.writeheader()
        rows.writerows(report["accuracy"])


def show(report: dict[str, Any]) -> None:
    for row in report["accuracy"]:
        print("{model:6s} {dtype:5s} {condition:24s} {probes:3d} × top-{top_k:<3d} {accuracy:.3f} "
              "[{low:.3f}, {high:.3f}]  chance {chance:.2f}  truths {truths}".format(**row))  # fmt: skip
    for where, kinds in report["plan_search"].items():
        for kind, row in kinds.items():
            a, b, c = (row[n] for n in ("nearest candidate", "plan search", "plan known"))
            print(f"{where}: {kind}: {a['accuracy']:.3f} → {b['accuracy']:.3f} [{b['low']:.3f}, {b['high']:.3f}] "
                  f"of {b['truths']}, known {c['accuracy']:.3f}; {row['runs']} runs")  # fmt: skip
    for row in report["inseparable"]:
        print(f"never claimed apart: {row['dtype']:5s} {row['class']:20s} {' '.join(row['gpus'])}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--models", nargs="+", default=["llama"])
    p.add_argument("--dtypes", nargs="+", default=["fp16", "bf16", "tf32", "fp8"])
    p.add_argument("--probes", type=int, default=64)
    p.add_argument("--books", type=int, default=6, help="plans by product, for each class; 0 leaves the tables out")
    p.add_argument("--search", type=int, default=1, help="observations of each class and kind to search plans for")
    p.add_argument("--search-probes", type=int, default=32)
    p.add_argument("--detector", type=Path, help="folder of a trained detector, such as models/detector, to judge with")
    p.add_argument("--learn", type=int, default=256, help="books run for each class before the first search")
    p.add_argument("--cache", type=Path, help="folder in which runs are kept, for a search that was stopped")
    p.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    p.add_argument("--out", type=Path, default=Path("reports"))
    args = p.parse_args()
    be_quiet()
    report = read(args.out)
    for model in args.models:
        for dtype in args.dtypes:
            if args.books:
                figures = [asdict(f) for f in tables(World(model, dtype, args.probes), args.books)]
                others = [r for r in report["accuracy"] if (r["model"], r["dtype"]) != (model, dtype)]
                report["accuracy"] = [*others, *figures]
                write(args.out, report)
            if not (args.search or args.detector):
                continue
            world = World(model, dtype, args.search_probes, args.cache)
            if args.detector:
                others = [r for r in report.get("verdicts", []) if (r["model"], r["dtype"]) != (model, dtype)]
                report["verdicts"] = [*others, *verdicts(world, args.detector, args.books or 2)]
                write(args.out, report)
            for kind in args.kinds if args.search else ():
                kept = report["plan_search"].setdefault(f"{model} {dtype}", {})
                rows = kept.get(kind, {}).get("observations", [])
                for found in searches(world, args.search, kind, args.learn, rows):
                    kept[kind] = found
                    write(args.out, report)
    show(report)


if __name__ == "__main__":
    main()
