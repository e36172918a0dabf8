"""Plan inference on a small network whose products run on emulated matrix units; the surrogate and the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from plan_search.search import Answers, Seen, Workbench, design, search, uniform
from plan_search.surrogate import Surrogate, influence
from plan_search.target import Target, spacing

from hspi.detectors.virtual_families import best_of, credit, family_name
from hspi.evidence.aligned import place
from hspi.numerics.formats import format_of, round_to
from hspi.numerics.matmul import matmul
from hspi.platforms.catalogue import get
from hspi.platforms.virtual.catalogue import virtual
from hspi.platforms.virtual.plans import PLANS, PlanBook
from hspi.reference.logits import likeliest
from hspi.signatures.top_k import top_k

PROBES, WIDTH, VOCABULARY = 24, 256, 96
PRODUCTS = {"up": WIDTH, "down": WIDTH, "lm_head": WIDTH}
ARCHITECTURES = ("ampere", "hopper", "cdna3")
FP16 = format_of("fp16")


def half(x):
    return round_to(x, FP16)


class Network:
    """Three layers in fp16; answers (logprobs, rank) on the 64 likeliest tokens of its float64 twin."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.x = half(rng.standard_normal((PROBES, WIDTH)))
        sizes = {"up": WIDTH, "down": WIDTH, "lm_head": VOCABULARY}
        self.weights = {p: half(rng.standard_normal((WIDTH, n)) / 16) for p, n in sizes.items()}
        exact = self._forward(lambda p, h: h.astype(float) @ self.weights[p].astype(float), lambda h: h)
        self.slots = likeliest(exact, 64)
        self.reference = np.take_along_axis(exact, self.slots, 1)

    def run(self, architecture, book):
        def product(p, h):
            return matmul(h, self.weights[p], architecture, "fp16", plan=book.plan_of(p))

        before = {}

        def last(p, h):
            before[p] = product(p, h)
            return before[p]

        ids, values = top_k(self._forward(last, half).astype(np.float32), 64)
        logits = np.take_along_axis(4 * before["lm_head"], self.slots, axis=1)
        return Answers(*place(self.slots, ids, values), logits.astype(np.float32))

    def _forward(self, product, rounded):
        h = self.x
        for p in ("up", "down"):
            h = rounded(np.tanh(rounded(product(p, h)).astype(float)))
        logits = 4 * rounded(product("lm_head", h)).astype(float)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def seen(self, architecture, book, k=20):
        found = self.run(architecture, book)
        return Seen(found.logprobs, np.where(found.rank < k, found.rank, 255).astype(np.uint8), self.reference, k)

    def bench(self):
        return Workbench(self.run, PRODUCTS, {"ampere": 16, "hopper": 16, "cdna3": 16})


@pytest.fixture(scope="module")
def network():
    return Network()


@pytest.fixture(scope="module")
def bench(network):
    return network.bench()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_uniform_plan_of_the_library_is_named_with_its_architecture(network, architecture):
    seen = network.seen(architecture, PlanBook("k4"))
    best = max(uniform(network.bench(), seen, ARCHITECTURES, tuple(PLANS)), key=lambda e: e.score)
    assert (best.architecture, best.book.default, best.equal) == (architecture, "k4", 1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_search_finds_a_plan_for_each_product_where_no_uniform_plan_fits(network, bench, architecture):
    truth = PlanBook("k1", {"up": "k4", "down": "rev", "lm_head": "ch2"})
    seen = network.seen(architecture, truth)
    flat = max(uniform(bench, seen, ARCHITECTURES, tuple(PLANS)), key=lambda e: e.score)
    found = search(bench, seen, ARCHITECTURES, learn=24)
    assert found[0].architecture == architecture and found[0].score > flat.score
    assert [e.score for e in found] == sorted((e.score for e in found), reverse=True)
    assert sorted(e.architecture for e in found) == sorted(ARCHITECTURES)


def test_an_observation_explained_bit_by_bit_ends_the_search(network, bench):
    truth = design(bench, "hopper", tuple(PLANS), 24)[5]
    found = search(bench, network.seen("hopper", truth), ARCHITECTURES, learn=24)
    assert (found[0].architecture, found[0].equal, found[0].score) == ("hopper", 1.0, 1.0) and found[1].equal < 1.0
    assert bench.key("hopper", found[0].book) == bench.key("hopper", truth)


def test_runs_are_kept_for_later_observations(network, bench):
    seen = network.seen("hopper", design(bench, "hopper", tuple(PLANS), 24)[7])
    first = search(bench, seen, ARCHITECTURES, learn=24)
    runs = bench.runs
    assert search(bench, seen, ARCHITECTURES, learn=24) == first and bench.runs == runs


def test_a_design_has_every_plan_of_every_product_equally_often(network, bench):
    books = design(bench, "ampere", tuple(PLANS), 24)
    for p in PRODUCTS:
        used = [b.name_of(p) for b in books]
        assert {used.count(n) for n in bench.distinct("ampere", p, tuple(PLANS))} == {3}


def test_the_surrogate_foretells_what_adds_up_and_knows_what_it_does_not_know():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(3, 4, 50)) * np.array([1.0, 0.5, 0.01])[:, None, None]

    def logits(codes):
        return sum(effects[p, codes[:, p]] for p in range(3))

    codes, others = rng.integers(0, 4, (30, 3)), rng.integers(0, 4, (20, 3))
    weights = influence(codes, logits(codes))
    assert weights.sum() == pytest.approx(1) and weights[0] > weights[1] > weights[2]
    surrogate = Surrogate.fit(codes, logits(codes))
    found, unknown = surrogate.predict(others)
    assert ((found - logits(others)) ** 2).mean() < 0.05 * logits(others).var()
    assert surrogate.predict(codes)[1].max() < 0.05 and (unknown > 0).all()


def test_intervals_hold_the_logits_that_were_rounded(network):
    found = network.run("ampere", PlanBook("k2"))
    target = Target.of(found.logprobs, np.where(found.rank < 20, found.rank, 255), 20, found.logits, (10, 10))
    logits = found.logits.ravel().astype(float)
    assert len(target.columns) == 20 * PROBES
    assert (np.abs(logits[target.columns] - target.middle) <= target.half * (1 + 1e-6)).all()
    assert target.distance(logits) == 0.0 < target.distance(logits + 2 * spacing(logits, 10))
    far = np.stack([logits, logits + spacing(logits, 10)])[:, target.columns]
    near, wrong = target.log_likelihood(far, np.full(2, 0.01), np.full(len(target.columns), 1e-6))
    assert near > wrong


def test_plans_that_come_to_the_same_are_run_once(network):
    bench = Workbench(network.run, {**PRODUCTS, "pv": 16}, {"hopper": 16})
    assert bench.distinct("hopper", "pv", tuple(PLANS)) == ["k1", "ch2"]  # a chunked tile deals out even 16 columns
    assert len(bench.distinct("hopper", "up", tuple(PLANS))) == len(PLANS)
    bench.answers("hopper", PlanBook("k1"))
    bench.answers("hopper", PlanBook("k1", {"pv": "k4"}))
    assert bench.runs == 1


def test_a_family_counts_by_its_best_plan_and_says_which():
    platforms = [virtual("A100", "bf16", "k1"), virtual("L40S", "bf16", "k2"), virtual("H100", "bf16", "k1")]
    names = [family_name(p) for p in (*platforms, get("torch-fp32"))]
    assert names == ["vgpu:ampere+ada:bf16", "vgpu:ampere+ada:bf16", "vgpu:hopper+blackwell:bf16", "torch-fp32"]
    scores = np.array([[0.1, 0.7, 0.3, 0.2], [0.5, 0.5, 0.9, 0.9]])
    found = best_of(scores, names)
    assert found.names == (*names[1:3], "torch-fp32")
    np.testing.assert_array_equal(found.score, [[0.7, 0.3, 0.2], [0.5, 0.9, 0.9]])
    np.testing.assert_array_equal(found.best, [[1, 2, 3], [0, 2, 3]])
    np.testing.assert_array_equal(credit(found.score, np.array([0, 1])), [1.0, 0.5])


def test_scales_of_fp8_part_families():
    assert family_name(virtual("H100", "fp8", "k1")) == "vgpu:hopper:fp8-channel"
    assert family_name(virtual("H100", "fp8t", "k1")) == "vgpu:hopper:fp8-tensor"
