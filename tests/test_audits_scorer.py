"""What candidates score on themselves: kept from audit to audit, and never another library's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import audit_world as world
from hspi.audits.levels.replay import ReplayScorer
from hspi.evidence.observation import Observation
from hspi.signatures.top_k import top_k


def test_kept_scores_are_the_same_bits_and_are_read_not_made(tmp_path: Path) -> None:
    plain = ReplayScorer(world.detector(), "toy", 20, world.SEED)
    first = ReplayScorer(world.detector(), "toy", 20, world.SEED, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    before = file.stat().st_mtime_ns
    second = ReplayScorer(world.detector(), "toy", 20, world.SEED, tmp_path)
    assert file.stat().st_mtime_ns == before
    for other in (first, second):
        assert other._calibration.tobytes() == plain._calibration.tobytes()
        assert other._own.tobytes() == plain._own.tobytes()


def test_values_are_the_same_under_whichever_batch_class_has_them() -> None:
    """Two classes that differ by the softmax's normaliser alone are equally near, and only one has the bits."""
    detector = world.detector()
    data = detector.library("toy").data
    at, shift = data.platform_ids().index("cpu/bf16"), np.float32(2**-12)
    logprobs = data.logprobs.copy()
    logprobs[at, 1] = logprobs[at, 0] + shift
    near = detector.with_library(replace(detector.library("toy"), data=replace(data, logprobs=logprobs)))
    scorer = ReplayScorer(near, "toy", 20, world.SEED)
    probes = scorer.split.test[:40]
    ids, values = top_k(world.answers(world.FORMULAS["cpu/bf16"], 0)[probes], 20)
    turns = np.arange(len(probes)) % 2
    values = np.where(turns[:, None], values + shift, values).astype(np.float32)
    seen = Observation("toy", [("tokens", int(i)) for i in probes], ids, values)
    gave = dict(zip(data.platform_ids(), scorer.gave(seen).tolist(), strict=True))
    assert gave == {name: name == "cpu/bf16" for name in gave}
    everyone = list(range(scorer.told.count))
    assert scorer.narrowed(seen, everyone) == [scorer.told.label[at]]
    others = [c for c in everyone if c != scorer.told.label[at]]
    assert scorer.narrowed(seen, others) == others, "who is excluded does not come back"


def test_another_library_top_k_or_split_has_scores_of_its_own(tmp_path: Path) -> None:
    detector = world.detector()
    data = detector.library("toy").data
    changed = data.logprobs.copy()
    changed[3, 1, 40, 5] = np.nextafter(changed[3, 1, 40, 5], np.float32(0))  # one bit
    other = detector.with_library(replace(detector.library("toy"), data=replace(data, logprobs=changed)))
    for some, k, seed in ((detector, 20, 1), (detector, 5, 1), (detector, 20, 2), (other, 20, 1)):
        ReplayScorer(some, "toy", k, seed, tmp_path)
    assert len(list(tmp_path.glob("*"))) == 4


def test_a_torn_cache_is_made_again(tmp_path: Path) -> None:
    whole = ReplayScorer(world.detector(), "toy", 20, world.SEED, tmp_path)
    (file,) = tmp_path.glob("*")
    file.write_bytes(file.read_bytes()[:1000])
    assert ReplayScorer(world.detector(), "toy", 20, world.SEED, tmp_path)._own.tobytes() == whole._own.tobytes()
