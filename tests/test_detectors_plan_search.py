"""Plan inference and families, on a small network whose products run on emulated matrix units."""

from __future__ import annotations

import numpy as np
import pytest

from hspi.detectors.families import best_of, credit, family_name
from hspi.detectors.plan_search import Seen, Workbench, search, uniform
from hspi.evidence.aligned import likeliest, place
from hspi.numerics.formats import format_of, round_to
from hspi.numerics.matmul import matmul
from hspi.platforms import get
from hspi.platforms.virtual_catalogue import virtual
from hspi.platforms.virtual_plans import PLANS, PlanBook
from hspi.signatures import top_k

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
            return half(matmul(h, self.weights[p], architecture, "fp16", plan=book.plan_of(p)))

        ids, values = top_k(self._forward(product, half).astype(np.float32), 64)
        return place(self.slots, ids, values)

    def _forward(self, product, rounded):
        h = self.x
        for p in ("up", "down"):
            h = rounded(np.tanh(product(p, h).astype(float)))
        logits = 4 * product("lm_head", h).astype(float)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def seen(self, architecture, book, k=20):
        logprobs, rank = self.run(architecture, book)
        return Seen(logprobs, np.where(rank < k, rank, 255).astype(np.uint8), self.reference, k)

    def bench(self):
        return Workbench(self.run, PRODUCTS, {"ampere": 16, "hopper": 16, "cdna3": 16})


@pytest.fixture(scope="module")
def network():
    return Network()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_uniform_plan_of_the_library_is_named_with_its_architecture(network, architecture):
    seen = network.seen(architecture, PlanBook("k4"))
    best = max(uniform(network.bench(), seen, ARCHITECTURES, tuple(PLANS)), key=lambda e: e.score)
    assert (best.architecture, best.book.default, best.equal) == (architecture, "k4", 1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_search_finds_a_plan_for_each_product_where_no_uniform_plan_fits(network, architecture):
    truth = PlanBook("k1", {"up": "k4", "down": "rev", "lm_head": "ch2"})
    seen = network.seen(architecture, truth)
    bench = network.bench()
    flat = max(uniform(bench, seen, ARCHITECTURES, tuple(PLANS)), key=lambda e: e.score)
    found = search(bench, seen, ARCHITECTURES)
    assert found[0].architecture == architecture and found[0].equal > flat.equal
    assert found[0].score >= flat.score and [e.score for e in found] == sorted((e.score for e in found), reverse=True)
    assert sorted(e.architecture for e in found) == sorted(ARCHITECTURES)


def test_runs_are_kept_for_later_observations(network):
    bench = network.bench()
    seen = network.seen("hopper", PlanBook("k2", {"up": "i4"}))
    first = search(bench, seen, ARCHITECTURES)
    runs = bench.runs
    assert search(bench, seen, ARCHITECTURES) == first and bench.runs == runs


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
