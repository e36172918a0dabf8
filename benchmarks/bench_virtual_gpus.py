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

from hspi import params, probes, reference, zoo
from hspi.detectors.families import best_of, credit
from hspi.detectors.plan_search import Seen, Workbench, search
from hspi.evidence.aligned import likeliest, place
from hspi.evidence.replay import F32, STATISTICS, pair_statistics
from hspi.numerics.plans import KernelPlan
from hspi.platforms import virtual_plans
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Platform
from hspi.platforms.virtual_catalogue import VIRTUAL, arithmetic_class, units_of
from hspi.platforms.virtual_plans import PlanBook
from hspi.quiet import be_quiet
from hspi.signatures import top_k

SIZES = ((32, 20), (8, 20), (2, 20), (1, 20), (32, 5), (8, 5))
DISTANCE = STATISTICS.index("log_distance")
# Plans that neither the library nor the search has.
FOREIGN = {
    "k3": KernelPlan(split_k=3),
    "k5t": KernelPlan(split_k=5, combine="tree"),
    "rot": KernelPlan(order="rotated"),
    "k4h": KernelPlan(split_k=4, workspace="bf16"),
}
OWN = tuple(virtual_plans.PLANS)  # the library's
KINDS = ("uniform", "by product", "foreign")
Answers = tuple[F32, npt.NDArray[np.uint8]]


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


class World:
    """One model in one number type on every arithmetic class; runs of the model are kept."""

    def __init__(self, model: str, dtype: str, count: int) -> None:
        self.model, self.dtype = model, dtype
        platforms = [p for p in VIRTUAL if p.id.endswith(f"-{dtype}-k1")]
        self.classes: dict[str, Platform] = {}
        for p in platforms:
            self.classes.setdefault(arithmetic_class(p), p)
        self.names = list(self.classes)
        self.architectures = [str(p.options["architecture"]) for p in self.classes.values()]
        ref = zoo.resolve(model)
        built = probes.build(params.load().probes.spec("text"), zoo.load_tokenizer(ref))
        self.contexts = list(built.contexts[:count])
        full = reference.reference_logprobs(ref, self.contexts, 1)[:, 0]
        self.slots = likeliest(full)
        self.reference = np.take_along_axis(full, self.slots, axis=1)
        self.adapter: Any = open_adapter(platforms[0], ref.path)
        self.adapter.logprobs(self.contexts[:1], 1)
        lengths = dict(self.adapter.products)
        order = sorted(lengths, key=lambda p: p in ("qk", "pv"))  # the layers first: they do most of the sums
        width = {
            a: units_of(p)[0].instruction_k for a, p in zip(self.architectures, self.classes.values(), strict=True)
        }
        self.bench = Workbench(self.run, {p: lengths[p] for p in order}, width)

    def run(self, architecture: str, book: PlanBook) -> Answers:
        if self.adapter.architecture != architecture or len(self.adapter._packed) > 300:
            self.adapter.use(architecture)
        self.adapter.book = book
        ids, values = top_k(self.adapter.logprobs(self.contexts, 1)[:, 0], 64)
        return place(self.slots, ids, values)

    def seen(self, answers: Answers, at: npt.NDArray[np.int64], k: int) -> Seen:
        rank = np.where(answers[1][at] < k, answers[1][at], 255).astype(np.uint8)
        return Seen(answers[0][at], rank, self.reference[at], k)

    def score(self, seen: Answers, candidates: list[Answers], k: int) -> F32:
        """Minus the log distance of each candidate on each probe: (C, P)."""
        logprobs, rank = (np.stack([c[i] for c in candidates]) for i in (0, 1))
        return -pair_statistics(seen[0], seen[1], logprobs, rank, self.reference, k)[..., DISTANCE]


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


def random_books(world: World, count: int, seed: int) -> list[PlanBook]:
    rng = np.random.default_rng(seed)
    return [PlanBook("k1", {p: str(rng.choice(OWN)) for p in world.bench.products}) for _ in range(count)]


def runs_of(world: World, books: int) -> tuple[dict[tuple[int, str], Answers], list[Any], list[Any]]:
    """Answers by (class, plan) of the library, with foreign plans, and with plans by product."""
    each = list(enumerate(world.architectures))
    library = {(c, n): world.bench.answers(a, PlanBook(n)) for c, a in each for n in OWN}
    foreign = [(c, n, world.bench.answers(a, PlanBook(n))) for c, a in each for n in FOREIGN]
    mixed = [(c, b, world.bench.answers(a, b)) for c, a in each for b in random_books(world, books, c)]
    return library, foreign, mixed


def without(library: dict[tuple[int, str], Answers], name: str) -> list[tuple[int, Answers]]:
    return [(c, x) for (c, n), x in library.items() if n != name]


def tables(world: World, books: int) -> list[Figure]:
    library, foreign, mixed = runs_of(world, books)
    every = [(c, x) for (c, _), x in library.items()]
    only = [(c, x) for (c, n), x in library.items() if n == "k1"]
    return [
        *accuracy(world, "plan in the library", [(c, x, every) for (c, _), x in library.items()]),
        *accuracy(world, "plan left out", [(c, x, without(library, n)) for (c, n), x in library.items()]),
        *accuracy(world, "library of one plan", [(c, x, only) for (c, n), x in library.items() if n != "k1"]),
        *accuracy(world, "foreign plan", [(c, x, every) for c, _, x in foreign]),
        *accuracy(world, "plan differs by product", [(c, x, every) for c, _, x in mixed]),
    ]


def searches(world: World, count: int, kinds: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each kind of unknown plan, with `count` observations of each class."""
    library, foreign, mixed = runs_of(world, count)
    every = [(c, x) for (c, _), x in library.items()]
    cases = {
        "uniform": [(c, x, without(library, n)) for (c, n), x in pick(library, count)],
        "by product": [(c, x, every) for c, _, x in first(mixed, count)],
        "foreign": [(c, x, every) for c, _, x in first(foreign, count)],
    }
    for kind in kinds:
        print(f"{world.model} {world.dtype}: {kind}")
        yield kind, inferred(world, cases[kind])


def pick(library: dict[tuple[int, str], Answers], count: int) -> list[tuple[tuple[int, str], Answers]]:
    """`count` plans of each class other than the plainest, not the same ones for each."""
    classes = sorted({c for c, _ in library})
    names = [n for c, n in library if c == classes[0]][1:]
    return [((c, n), library[c, n]) for c in classes for n in (names[(c + 3 * i) % len(names)] for i in range(count))]


def first(cases: list[tuple[int, Any, Answers]], count: int) -> list[tuple[int, Any, Answers]]:
    return [x for c in sorted({c for c, _, _ in cases}) for x in [y for y in cases if y[0] == c][:count]]


def inferred(world: World, cases: list[Any]) -> dict[str, Any]:
    """Nearest candidate against plan search on the same observations: every probe of this world, top-20."""
    rng, at = np.random.default_rng(1), np.arange(len(world.contexts))
    before, after, exact = [], [], 0
    began, runs = time.monotonic(), world.bench.runs
    for truth, answers, candidates in cases:
        scores = world.score(answers, [c for _, c in candidates], 20)[:, at].mean(axis=1)[None]
        found = best_of(scores, [world.names[c] for c, _ in candidates])
        before.append(credit(found.score, np.array([found.names.index(world.names[truth])]))[0])
        best = search(world.bench, world.seen(answers, at, 20), world.architectures, OWN)
        winners = [e.architecture for e in best if e.score == best[0].score]
        exact += best[0].equal == 1.0
        after.append((world.architectures[truth] in winners) / len(winners))
        print(f"  {world.names[truth]:20s} nearest {before[-1]:.2f}  search {after[-1]:.2f}  equal {best[0].equal:.3f}")
    rows = {
        name: asdict(figure(world, name, len(at), 20, np.array(v), len(v), rng))
        for name, v in (("nearest candidate", before), ("plan search", after))
    }
    lost, won = 1 - np.mean(before), np.mean(after) - np.mean(before)
    return {
        **rows,
        "share of the loss won back": round(float(won / lost), 3) if lost else None,
        "every bit explained": exact,
        "runs": world.bench.runs - runs,
        "seconds": round(time.monotonic() - began, 1),
    }


def inseparable() -> list[dict[str, Any]]:
    """GPUs that share arithmetic in a number type: by the records, no observation tells them apart."""
    rows: dict[tuple[str, str], list[str]] = {}
    for p in VIRTUAL:
        if p.id.endswith("-k1"):
            kind = p.id.split("-")[-2]
            rows.setdefault((kind, arithmetic_class(p)), []).append(p.hardware.removeprefix("virtual "))
    return [{"dtype": d, "class": c, "gpus": g} for (d, c), g in rows.items()]


def read(folder: Path) -> dict[str, Any]:
    """What earlier runs found; each part is replaced when it is measured again."""
    path = folder / "virtual_gpus.json"
    found: dict[str, Any] = (
        json.loads(path.read_text("utf-8")) if path.exists() else {"accuracy": [], "plan_search": {}}
    )
    return found | {"provenance": "emulated", "inseparable": inseparable()}


def write(folder: Path, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "virtual_gpus.json.tmp"
    temporary.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    temporary.replace(folder / "virtual_gpus.json")
    with (folder / "virtual_gpus.csv").open("w", newline="") as f:
        rows = csv.DictWriter(f, list(Figure.__dataclass_fields__))
        rows.writeheader()
        rows.writerows(report["accuracy"])


def show(report: dict[str, Any]) -> None:
    for row in report["accuracy"]:
        print("{model:6s} {dtype:5s} {condition:24s} {probes:3d} × top-{top_k:<3d} {accuracy:.3f} "
              "[{low:.3f}, {high:.3f}]  chance {chance:.2f}  truths {truths}".format(**row))  # fmt: skip
    for where, kinds in report["plan_search"].items():
        for kind, row in kinds.items():
            a, b = row["nearest candidate"], row["plan search"]
            print(f"{where}: {kind}: {a['accuracy']:.3f} → {b['accuracy']:.3f} [{b['low']:.3f}, {b['high']:.3f}] "
                  f"of {b['truths']}; won back {row['share of the loss won back']}, {row['runs']} runs")  # fmt: skip
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
    p.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    p.add_argument("--out", type=Path, default=Path("reports"))
    args = p.parse_args()
    be_quiet()
    virtual_plans.PLANS.update(FOREIGN)
    report = read(args.out)
    for model in args.models:
        for dtype in args.dtypes:
            if args.books:
                figures = [asdict(f) for f in tables(World(model, dtype, args.probes), args.books)]
                others = [r for r in report["accuracy"] if (r["model"], r["dtype"]) != (model, dtype)]
                report["accuracy"] = [*others, *figures]
                write(args.out, report)
            if args.search:
                for kind, found in searches(World(model, dtype, args.search_probes), args.search, args.kinds):
                    report["plan_search"].setdefault(f"{model} {dtype}", {})[kind] = found
                    write(args.out, report)
    show(report)


if __name__ == "__main__":
    main()
