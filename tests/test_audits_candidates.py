"""Choosing whom an endpoint is held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

import audit_world as world
from hspi.audits.candidates import _signatures, as_served, parse_kinds
from hspi.audits.levels.replay import ReplayScorer
from hspi.audits.levels.scorer import nearest_rivals
from hspi.errors import ConfigError, DataError
from hspi.params import SetSize, load
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header
from hspi.signatures.store import signature_path

if TYPE_CHECKING:
    from hspi.zoo import ModelRef


def test_rivals_are_of_other_classes() -> None:
    classes = world.detector().library("toy").classes
    rivals = nearest_rivals(classes.separation, classes.label)
    for i, row in enumerate(rivals):
        assert all(classes.label[r] != classes.label[i] for r in row)


@pytest.mark.parametrize(
    ("platform", "setting", "hypotheses"),
    [
        ("cpu/int8", 1, 0),  # nothing says what another company of four would change
        ("cpu/int8", 0, 1),  # alone it repeats itself
        ("cpu/bf16", 1, 1),  # a batch class, whatever shares the batch
    ],
)
def test_a_setting_that_stands_alone_is_a_hypothesis_if_it_repeats(
    platform: str, setting: int, hypotheses: int
) -> None:
    detector = world.detector()
    data = detector.library("toy").data
    at = data.platform_ids().index(platform)
    raw, logprobs = data.raw.copy(), data.logprobs.copy()
    others = [s for s in range(raw.shape[1]) if s != setting]
    raw[at, others], logprobs[at, others] = np.nan, np.nan
    lonely = detector.with_library(replace(detector.library("toy"), data=replace(data, raw=raw, logprobs=logprobs)))
    tested = np.isfinite(ReplayScorer(lonely, "toy", 20, world.SEED)._calibration).all(axis=(0, 3))
    assert tested[at].sum() == hypotheses
    rest = [i for i in range(6) if i != at]
    assert (tested[rest] == data.present[rest]).all()


@pytest.mark.parametrize("text", ["", "store,else", ","])
def test_kinds_must_be_known(text: str) -> None:
    with pytest.raises(ConfigError, match="local, store, emulated"):
        parse_kinds(text)


def test_kinds_are_parsed() -> None:
    assert parse_kinds("local, store") == ("local", "store")


def test_audits_ask_what_signatures_answered_at_one_position_alone() -> None:
    """A last product over eight positions may round otherwise than one over the last alone, on the same platform."""
    whole = world.detector()
    data = replace(
        whole.library("toy").data, probes=[("words" if i % 2 else "text", i // 2) for i in range(world.SIZE)]
    )
    library = replace(whole.library("toy"), data=data)
    sets = {"words": SetSize(world.SIZE // 2, 8, 64), "text": SetSize(world.SIZE // 2, 1, 64)}
    p = replace(load(), probes=replace(load().probes, sets=sets))
    kept = as_served(library, p).data
    assert {name for name, _ in kept.probes} == {"text"} and len(kept.probes) == world.SIZE // 2
    assert np.array_equal(kept.logprobs, data.logprobs[:, :, ::2], equal_nan=True)
    with pytest.raises(DataError, match="one position"):
        as_served(library, replace(p, probes=replace(p.probes, sets=dict.fromkeys(sets, sets["words"]))))


def test_the_store_gives_platforms_that_answered_every_probe_set_of_the_library(tmp_path: Path) -> None:
    def stored(platform: str, probe_set: str, probe_hash: str, weights: str = "w") -> None:
        header = Header(Platform(platform, "vllm"), "toy", weights, probe_set, probe_hash, Nuisance("b1"), 1, 2)
        with Journal(signature_path(tmp_path, "cpu", platform, "toy", probe_set, "b1"), header) as journal:
            rows = np.array([[[3, 4]]], np.int32), np.full((1, 1, 2), -1, np.float32)
            journal.append(to_batch(journal.schema, np.arange(1), 4, *rows))
            journal.finish()

    for name, text, tokens in (("whole", "a", "b"), ("other-probes", "a", "x"), ("known", "a", "b")):
        stored(name, "text", text)
        stored(name, "tokens", tokens)
    stored("whole", "words", "c")
    stored("half", "text", "a")
    stored("other-weights", "text", "a", weights="v")
    ref = cast("ModelRef", SimpleNamespace(weights_hash="w"))
    found = _signatures(tmp_path, ref, {"cpu/known"}, {"text": "a", "tokens": "b"})
    assert {(s.header.platform.id, s.header.probe_set) for s in found} == {("whole", "text"), ("whole", "tokens")}
    anything = {s.header.platform.id for s in _signatures(tmp_path, ref, (), {})}
    assert anything == {"whole", "other-probes", "known", "half"}
