"""Alignment against a dictionary for each row, and its files."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import synthetic
from hspi.errors import DataError
from hspi.evidence.aligned import ABSENT, Aligned, align, place
from hspi.platforms.record import Platform
from hspi.reference.logits import SLOTS
from hspi.signatures.batch_classes import BatchClasses, setting, unsteady
from hspi.signatures.schema import Signature


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
    assert aligned.platform_ids() == ["cpu/bf16-a", "cpu/fp32-a"]
    assert [list(sizes) for sizes in aligned.settings] == [list(synthetic.SETTINGS)] * 2
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


# ---------------------------------------------------------------- settings: each platform's own batch classes


def answered(name: str, sizes: str = "", bits: str = "", classes: BatchClasses | None = None) -> list[Signature]:
    """A platform's signatures on both sets: at each of `sizes` ("1 4 16") with the bits of a letter of `bits`."""
    rows = zip(map(int, sizes.split()), bits or "abcdefg", strict=False)
    return [
        relabelled(name, s, size, "abcdefg".index(letter), classes) for size, letter in rows for s in synthetic.SETS
    ]


def relabelled(name: str, probe_set: str, size: int, letter: int, classes: BatchClasses | None) -> Signature:
    one = synthetic.signature("bf16-b", "one", probe_set, synthetic.SETTINGS[letter])
    header = replace(one.header, platform=Platform(name, "e"), nuisance=setting(size), batch_classes=classes)
    return replace(one, header=header)


def aligned_of(*some: list[Signature]) -> Aligned:
    return align("one", [s for part in some for s in part], synthetic.reference("one"))


AMX = BatchClasses({"b1": "1-2 16-64", "b3": "3-15"})


def test_settings_of_equal_bits_are_one_and_the_smallest_names_it() -> None:
    data = aligned_of(answered("p", "16 4 1 7", "abab"), answered("q", "1 4", "ab"))
    assert data.settings == [{"b1": "1 16", "b4": "4 7"}, {"b1": "1", "b4": "4"}]
    assert data.present.tolist() == [[True, True], [True, True]]
    one, other = (synthetic.signature("bf16-b", "one", "text", s).last_position() for s in ("b1", "b2"))
    at = data.probes.index(("text", 5))
    np.testing.assert_array_equal(data.raw[0, 0, at], one.topk_logprobs[5])
    np.testing.assert_array_equal(data.raw[0, 1, at], other.topk_logprobs[5])


def test_settings_are_one_only_if_both_sets_are_answered_alike() -> None:
    half = [*answered("p", "1", "a"), relabelled("p", "text", 4, 0, None), relabelled("p", "words", 4, 1, None)]
    assert list(aligned_of(half).settings[0]) == ["b1", "b4"]


@pytest.mark.parametrize(
    ("some", "settings", "steady", "complete"),
    [
        # searched: what was found holds, and it is complete where each class that was found has a signature
        (answered("p", "1 3", "ab", AMX), {"b1": "1-2 16-64", "b3": "3-15"}, True, True),
        (answered("p", "3", "b", AMX), {"b3": "3-15"}, True, False),
        (answered("p", "1 3", "aa", AMX), {"b1": "1-2 3-15 16-64"}, True, True),  # they differ in no token that is kept
        (answered("p", "1 4 7 16", "abcd", unsteady(0.4)), {f"b{n}": str(n) for n in (1, 4, 7, 16)}, False, False),
        # nobody searched: equal bits among three settings or more tell, and nothing is complete
        (answered("p", "1 4 7", "aab"), {"b1": "1 4", "b7": "7"}, True, False),
        (answered("p", "1 4 7", "abc"), {"b1": "1", "b4": "4", "b7": "7"}, False, False),
        (answered("p", "1 4", "ab"), {"b1": "1", "b4": "4"}, True, False),
        (answered("p", "4", "a"), {"b4": "4"}, True, False),
    ],
)
def test_what_is_known_of_a_platform_s_classes(
    some: list[Signature], settings: dict[str, str], steady: bool, complete: bool
) -> None:
    data = aligned_of(some)
    assert (data.settings, data.steady, data.complete) == ([settings], [steady], [complete])


def mixture(name: str, size: int, letters: str) -> list[Signature]:
    """At this size the place in the batch decides: probe by probe, one letter's bits after another's."""
    found = []
    for parts in zip(*(answered(name, str(size), letter) for letter in letters), strict=True):
        of = parts[0].probe_id % len(letters)
        fields = {n: np.choose(of[:, None], [getattr(p, n) for p in parts]) for n in ("topk_ids", "topk_logprobs")}
        found.append(replace(parts[0], **fields))
    return found


def test_a_size_whose_answers_are_each_another_size_s_stands_in_those_classes() -> None:
    data = aligned_of(answered("p", "1 16", "ab"), mixture("p", 20, "ab"))
    assert data.settings == [{"b1": "1 20", "b16": "16 20"}] and data.steady == [True]
    assert data.rows == [(0, 0), (0, 1)], "no class of its own"
    three = aligned_of(answered("p", "1 16", "ab"), mixture("p", 20, "abc"))
    assert three.settings == [{"b1": "1", "b16": "16", "b20": "20"}] and three.steady == [False], "some are nobody's"


def test_a_setting_that_was_tried_beside_a_search_keeps_its_size() -> None:
    """As a signature made with --batch-size, of whose company nothing is known."""
    data = aligned_of(answered("p", "1 3", "ab", AMX), answered("p", "5", "c"))
    assert data.settings == [{"b1": "1-2 16-64", "b3": "3-15", "b5": "5"}] and data.complete == [True]


def test_steady_platforms_repeat_and_unsteady_ones_only_where_they_are_asked_alone() -> None:
    data = aligned_of(answered("p", "1 3", "ab", AMX), answered("q", "1 4 7 16", "abcd", unsteady(0.4)))
    assert [[data.repeats(c, s) for c, s in data.rows if c == i] for i in (0, 1)] == [
        [True, True],
        [True, False, False, False],
    ]


def test_an_unsteady_platform_repeats_itself_where_it_answered_alike_in_several_companies() -> None:
    data = aligned_of(answered("q", "1 4 7 16", "abbc", unsteady(0.4)))
    assert data.settings == [{"b1": "1", "b4": "4 7", "b16": "16"}] and not data.steady[0]
    assert [data.repeats(0, s) for s in range(3)] == [True, True, False]


def test_beside_answers_in_company_stands_nobody_s_signature_of_the_same_company() -> None:
    """Twins answer alike in it, and a server that is asked keeps a company that no library has met."""
    p, q = (answered(name, "1 4 7 16", "abcd", unsteady(0.4)) for name in "pq")
    data = aligned_of(p, q, answered("r", "1 3", "ab", AMX), answered("s", "4", "a", unsteady(0.4)))
    at = list(data.settings[0]).index("b7")
    beside = data.beside(0, at)
    assert data.restless.sum() == 7
    assert not beside[:2, at].any() and beside.sum() == data.present.sum() - 2
    assert data.beside(0, list(data.settings[0]).index("b4"))[3].any(), "who has no other keeps it"
    for row in ((0, 0), (2, 1)):  # alone, and steady
        np.testing.assert_array_equal(data.beside(*row), data.present)


def test_the_axis_of_settings_is_each_platform_s_own() -> None:
    data = aligned_of(answered("p", "1 3", "ab", AMX), answered("q", "4", "c"), answered("r", "1 4 7", "abc"))
    assert data.logprobs.shape[:2] == (3, 3)
    assert data.rows == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]
    assert data.present.sum() == 6 and np.isnan(data.logprobs[1, 1:]).all() and (data.rank[1, 1:] == ABSENT).all()
    some = data.only([2, 1])
    assert some.platform_ids() == ["cpu/r", "cpu/q"] and some.rows == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert some.settings == [data.settings[2], data.settings[1]] and some.steady == [False, True]


def test_platforms_of_more_settings_join_and_each_keeps_its_own() -> None:
    first, second = aligned_of(answered("p", "1 3", "ab", AMX)), aligned_of(answered("q", "1 4 7", "abc"))
    for a, b in ((first, second), (second, first)):
        both = a.joined(b)
        assert both.rows == [*a.rows, *((c + 1, s) for c, s in b.rows)]
        assert both.settings == [*a.settings, *b.settings] and both.complete == [*a.complete, *b.complete]
        for c, part in enumerate((a, b)):
            for s in range(len(part.settings[0])):
                assert both.logprobs[c, s].tobytes() == part.logprobs[0, s].tobytes()
    with pytest.raises(DataError, match="own probes"):
        first.joined(replace(second, slots=second.slots[:, ::-1]))


def test_an_observation_is_one_setting_of_which_nothing_is_known() -> None:
    data = aligned_of(answered("p", "1 3", "ab", AMX))
    seen = data.with_observation(data.logprobs[0, 1], data.rank[0, 1], data.raw[0, 1])
    assert seen.rows == [(0, 0)] and seen.steady == seen.complete == [False] and not seen.repeats(0, 0)


# ---------------------------------------------------------------- what is refused


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


def test_a_file_from_before_batch_classes_is_read(aligned: Aligned, tmp_path: Path) -> None:
    """Its settings were one list for all platforms, and it held a place for each of every one."""
    path = tmp_path / "old.safetensors"
    aligned.save(path)
    with safe_open(path, framework="numpy") as f:
        names = json.loads(f.metadata()["hspi"])
        arrays = {n: f.get_tensor(n) for n in ("slots", "reference", "lse", "predicted")}
    for name in ("settings", "steady", "complete"):
        del names[name]
    arrays |= {n: np.ascontiguousarray(getattr(aligned, n)) for n in ("logprobs", "rank", "raw")}
    save_file(arrays, path, metadata={"hspi": json.dumps({**names, "nuisances": ["b1", "b4", "b7", "b16"]})})
    again = Aligned.load(path)
    assert [list(s) for s in again.settings] == [["b1", "b4", "b7", "b16"]] * 2
    assert again.steady == again.complete == [False, False] and not again.repeats(1, 0)
    assert again.logprobs.tobytes() == aligned.logprobs.tobytes()


def test_a_saved_file_has_no_empty_places(tmp_path: Path) -> None:
    """Most platforms have one batch class, and one may have eight."""
    many, few = (
        answered("p", "1 4 7", "abc"),
        [answered(f"q{i}", "1", "a", BatchClasses({"b1": "1-64"})) for i in range(5)],
    )
    data = aligned_of(many, *few)
    data.save(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as f:
        assert f.get_tensor("logprobs").shape == (8, *data.logprobs.shape[2:])
    again = Aligned.load(tmp_path / "x.safetensors")
    for name in ("logprobs", "rank", "raw"):
        assert getattr(again, name).tobytes() == getattr(data, name).tobytes()
    data.only([]).save(tmp_path / "none.safetensors")
    assert Aligned.load(tmp_path / "none.safetensors").rows == []


def test_some_probes_alone_are_those_probes(aligned: Aligned) -> None:
    pool = np.array([40, 3])
    part = aligned.on_probes(pool)
    assert part.probes == [aligned.probes[40], aligned.probes[3]]
    np.testing.assert_array_equal(part.logprobs[:, :, 1], aligned.logprobs[:, :, 3])
    np.testing.assert_array_equal(part.reference[0], aligned.reference[40])
