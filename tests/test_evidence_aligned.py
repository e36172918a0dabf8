"""Alignment against a dictionary for each row, and its files."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import synthetic
from hspi.errors import DataError
from hspi.evidence.aligned import ABSENT, Aligned, align, place
from hspi.reference.logits import SLOTS


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_each_reported_token_lands_in_its_slot_and_no_other_does(seed: int, n_slots: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    slots = np.stack([rng.permutation(20)[:n_slots] for _ in range(3)]).astype(np.int32)
    ids = np.stack([rng.permutation(20)[:k] for _ in range(3)]).astype(np.int32)
    ids[rng.random(ids.shape) < 0.2] = -1  # not reported
    values = rng.normal(size=ids.shape).astype(np.float32)
    found, rank = place(slots, ids, values)
    for i in range(3):
        said = {int(t): (values[i, j], j) for j, t in enumerate(ids[i]) if t >= 0}
        for j, token in enumerate(slots[i]):
            value, at = said.get(int(token), (np.nan, ABSENT))
            assert rank[i, j] == at
            np.testing.assert_equal(found[i, j], np.float32(value))


@pytest.fixture(scope="module")
def aligned() -> Aligned:
    return align("one", synthetic.signatures("one", ["bf16-a", "fp32-a"]), synthetic.reference("one"))


def test_answers_stand_at_their_platform_setting_and_probe(aligned: Aligned) -> None:
    assert aligned.platform_ids() == ["bf16-a", "fp32-a"] and aligned.nuisances == list(synthetic.SETTINGS)
    assert aligned.logprobs.shape == (2, 4, 96, SLOTS) and aligned.present.all()
    one = synthetic.signature("fp32-a", "one", "words", "b3").last_position()
    at = aligned.probes.index(("words", 5))
    np.testing.assert_array_equal(aligned.raw[1, 2, at], one.topk_logprobs[5])
    order = np.argsort(aligned.rank[1, 2, at], kind="stable")
    seen = aligned.rank[1, 2, at][order] != ABSENT
    ranks = aligned.rank[1, 2, at][order][seen]
    np.testing.assert_array_equal(aligned.slots[at][order][seen], one.topk_ids[5][ranks])
    np.testing.assert_array_equal(aligned.logprobs[1, 2, at][order][seen], one.topk_logprobs[5][ranks])
    likely = np.sort(synthetic.reference("one")["words"][5])[::-1][:SLOTS]
    np.testing.assert_allclose(aligned.reference[at], likely, rtol=0, atol=1e-14)


def test_a_setting_that_lacks_one_probe_set_is_not_present() -> None:
    some = synthetic.signatures("one", ["fp32-a", "fp32-b"])
    kept = [s for s in some if (s.header.platform.id, s.header.probe_set, s.header.nuisance.name) != _LOST]
    data = align("one", kept, synthetic.reference("one"))
    assert data.present.sum() == data.present.size - 1 and not data.present[0, 1]


_LOST = ("fp32-a", "text", "b2")


def test_signatures_of_other_probes_are_refused() -> None:
    one, two = (synthetic.signature("fp32-a", "one", "text", s) for s in ("b1", "b2"))
    other = replace(two, header=replace(two.header, probe_hash="other"))
    with pytest.raises(DataError, match="one list of probes"):
        align("one", [one, other], synthetic.reference("one"))


def test_signatures_of_two_models_are_refused(aligned: Aligned) -> None:
    one, two = (synthetic.signature("fp32-a", "one", "text", s) for s in ("b1", "b2"))
    with pytest.raises(DataError, match="one model's weights"):
        other = replace(two, header=replace(two.header, weights_hash="other"))
        align("one", [one, other], synthetic.reference("one"))
    assert aligned.weights_hash == "weights-one"
    assert aligned.probe_hashes == {"text": "probes-text", "words": "probes-words"}


def test_more_probes_than_the_reference_has_are_refused() -> None:
    cut = {s: r[:-1] for s, r in synthetic.reference("one").items()}
    with pytest.raises(DataError, match="47"):
        align("one", synthetic.signatures("one", ["fp32-a"]), cut)


def test_a_saved_file_gives_the_same_bits_and_a_torn_one_an_error(aligned: Aligned, tmp_path: Path) -> None:
    path = tmp_path / "x" / "one.safetensors"
    aligned.save(path)
    again = Aligned.load(path)
    for f in fields(Aligned):
        a, b = getattr(aligned, f.name), getattr(again, f.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), f.name
        else:
            assert a == b, f.name
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            Aligned.load(path)


def test_some_probes_alone_are_those_probes(aligned: Aligned) -> None:
    pool = np.array([40, 3])
    part = aligned.on_probes(pool)
    assert part.probes == [aligned.probes[40], aligned.probes[3]]
    np.testing.assert_array_equal(part.logprobs[:, :, 1], aligned.logprobs[:, :, 3])
    np.testing.assert_array_equal(part.reference[0], aligned.reference[40])
