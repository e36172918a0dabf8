"""One zoo model on every arithmetic class of virtual GPUs: its runs, kept on disk where asked, and true books."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from plan_search.search import Answers, Seen, Workbench

from hspi import params, probes, zoo
from hspi.evidence.aligned import place
from hspi.evidence.replay import F32, STATISTICS, pair_statistics
from hspi.files import whole
from hspi.numerics.plans import KernelPlan
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Platform
from hspi.platforms.virtual.catalogue import VIRTUAL, arithmetic_class, units_of
from hspi.platforms.virtual.gpu import VirtualGpuAdapter
from hspi.platforms.virtual.plans import PLANS, PlanBook
from hspi.reference.logits import likeliest, reference_logprobs
from hspi.signatures.top_k import top_k

DISTANCE = STATISTICS.index("log_distance")
MANTISSA = {"fp16": (10, 10), "bf16": (7, 7), "tf32": (23, 10), "fp8": (7, 7), "fp8t": (7, 7)}
OWN = tuple(PLANS)  # the library's
# Plans that neither the library nor the search has.
FOREIGN = {
    "k3": KernelPlan(split_k=3),
    "k5t": KernelPlan(split_k=5, combine="tree"),
    "rot": KernelPlan(order="rotated"),
    "k4h": KernelPlan(split_k=4, workspace="bf16"),
}
PLANS.update(FOREIGN)


class World:
    """One model in one number type on every arithmetic class; what the workbench runs is kept, in `cache` if given."""

    def __init__(self, model: str, dtype: str, count: int, cache: Path | None = None) -> None:
        self.model, self.dtype = model, dtype
        platforms = [p for p in VIRTUAL if p.id.endswith(f"-{dtype}-k1")]
        self.classes: dict[str, Platform] = {}
        for p in platforms:
            self.classes.setdefault(arithmetic_class(p), p)
        self.names = list(self.classes)
        self.architectures = [str(p.options["architecture"]) for p in self.classes.values()]
        self.ref = zoo.resolve(model)
        built = probes.build(params.load().probes.spec("text"), zoo.load_tokenizer(self.ref))
        self.contexts = list(built.contexts[:count])
        full = reference_logprobs(self.ref, self.contexts, 1)[:, 0]
        self.slots = likeliest(full)
        self.reference = np.take_along_axis(full, self.slots, axis=1)
        adapter = open_adapter(platforms[0], self.ref.path)
        assert isinstance(adapter, VirtualGpuAdapter)
        self.adapter = adapter
        self.adapter.logprobs(self.contexts[:1], 1)
        lengths = dict(self.adapter.products)
        order = sorted(lengths, key=lambda p: p in ("qk", "pv"))
        width = {
            a: units_of(p)[0].instruction_k for a, p in zip(self.architectures, self.classes.values(), strict=True)
        }
        self.bench = Workbench(self.run, {p: lengths[p] for p in order}, width, MANTISSA[dtype])
        self.file = cache / f"cache_{model}_{dtype}_{count}.npz" if cache else None
        self.load()

    def run(self, architecture: str, book: PlanBook) -> Answers:
        if self.adapter.architecture != architecture or len(self.adapter._packed) > 600:
            self.adapter.use(architecture)
        self.adapter.book = book
        if self.bench.runs % 40 == 39:
            self.save()
        ids, values = top_k(self.adapter.logprobs(self.contexts, 1)[:, 0], 64)
        logits = self.adapter.unrounded.numpy().reshape(len(self.contexts), -1)
        return Answers(*place(self.slots, ids, values), np.take_along_axis(logits, self.slots, axis=1))

    def seen(self, answers: Answers, k: int) -> Seen:
        rank = np.where(answers.rank < k, answers.rank, 255).astype(np.uint8)
        return Seen(answers.logprobs, rank, self.reference, k)

    def score(self, seen: Answers, candidates: list[Answers], k: int) -> F32:
        """Minus the log distance of each candidate on each probe: (C, P)."""
        logprobs, rank = np.stack([c.logprobs for c in candidates]), np.stack([c.rank for c in candidates])
        return -pair_statistics(seen.logprobs, seen.rank, logprobs, rank, self.reference, k)[..., DISTANCE]

    # ------------------------------------------------------------ what it runs

    def library(self) -> dict[tuple[int, str], Answers]:
        """Answers by (class, uniform plan)."""
        return {(c, n): self.bench.answers(a, PlanBook(n)) for c, a in enumerate(self.architectures) for n in OWN}

    def mixed_book(self, c: int, i: int) -> PlanBook:
        """The i-th true book of a class: a plan for each product."""
        rng = np.random.default_rng([3, c, i])
        return PlanBook("k1", {p: str(rng.choice(OWN)) for p in self.bench.products})

    def layered_book(self, c: int, i: int) -> PlanBook:
        """A plan of its own for every weight of every layer, and for both products of attention."""
        rng = np.random.default_rng([2, c, i])
        return PlanBook("k1", {p: str(rng.choice(OWN)) for p in [*self.adapter.places, "qk", "pv"]})

    # ------------------------------------------------------------ runs on disk

    def load(self) -> None:
        if self.file is None or not self.file.exists():
            return
        with np.load(self.file) as f:
            keys, lp, rank, logits = (f[n] for n in ("keys", "lp", "rank", "logits"))
        for i, (architecture, key) in enumerate(json.loads(str(keys))):
            self.bench._kept.setdefault(architecture, {})[tuple(key)] = Answers(lp[i], rank[i], logits[i])

    def save(self) -> None:
        if self.file is None:
            return
        rows = [(a, key, x) for a, some in self.bench._kept.items() for key, x in some.items()]
        arrays: dict[str, Any] = {
            "keys": np.array(json.dumps([(a, list(key)) for a, key, _ in rows])),
            "lp": np.stack([x.logprobs for *_, x in rows]),
            "rank": np.stack([x.rank for *_, x in rows]),
            "logits": np.stack([x.logits for *_, x in rows]),
        }
        with whole(self.file) as temporary, temporary.open("wb") as f:  # by name it would end in .npz
            np.savez(f, **arrays)
