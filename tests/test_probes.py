"""Probe sets on a real tokenizer: the same for ever, of one length, and known by their hash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hspi import probes
from hspi.errors import ConfigError, ModelError
from hspi.probes import KINDS, ProbeSpec, build, content_hash

SPEC = ProbeSpec("text", "text", size=12, length=10, seed=3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A small BPE of our own, trained on the prose that ships."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(probes._prose())], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_spec_gives_the_same_probes_and_another_seed_others(tokenizer: Any, kind: Any) -> None:
    spec = replace(SPEC, name=kind, kind=kind)
    one, two = build(spec, tokenizer), build(spec, tokenizer)
    np.testing.assert_array_equal(one.contexts, two.contexts)
    assert one.hash == two.hash == content_hash(kind, one.contexts)
    other = build(replace(spec, seed=4), tokenizer)
    assert other.hash != one.hash and not np.array_equal(other.contexts, one.contexts)
    assert one.contexts.shape == (12, 10) and one.contexts.dtype == np.int64
    assert len(np.unique(one.contexts, axis=0)) == 12, "no probe comes twice"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_of_the_vocabulary_and_never_special(tokenizer: Any, kind: Any) -> None:
    ids = build(replace(SPEC, kind=kind, size=60), tokenizer).contexts
    assert ids.min() >= 0 and ids.max() < len(tokenizer)
    assert not np.isin(ids, tokenizer.all_special_ids).any()


def test_text_is_a_window_of_the_prose_and_words_are_words_of_ours(tokenizer: Any) -> None:
    prose = " ".join(probes._prose())
    for row in build(SPEC, tokenizer).contexts:
        assert tokenizer.decode(row) in prose
    words = set(probes._words())
    for row in build(replace(SPEC, kind="words", length=30), tokenizer).contexts:
        said = tokenizer.decode(row).split()
        assert set(said[:-1]) <= words  # the last may be cut


def test_a_larger_set_begins_with_the_smaller(tokenizer: Any) -> None:
    for kind in KINDS:
        small, large = (build(replace(SPEC, kind=kind, size=n), tokenizer).contexts for n in (5, 12))
        np.testing.assert_array_equal(large[:5], small)


def test_the_hash_knows_kind_order_and_shape() -> None:
    ids = np.arange(12).reshape(3, 4)
    seen = {content_hash("text", ids), content_hash("words", ids), content_hash("text", ids[::-1])}
    seen |= {content_hash("text", ids.reshape(4, 3)), content_hash("text", ids + 1)}
    assert len(seen) == 5
    assert content_hash("text", np.asfortranarray(ids).astype(np.int32)) in seen


def test_a_tokenizer_that_merges_words_fills_the_length(tokenizer: Any) -> None:
    class Merges:
        all_special_ids: tuple[int, ...] = ()

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [1, 2, 3]}

    rows = build(SPEC, Merges()).contexts
    np.testing.assert_array_equal(rows[0], [1, 2, 3, 1, 2, 3, 1, 2, 3, 1])


@pytest.mark.timeout(20)
def test_a_tokenizer_that_says_nothing_is_an_error_and_no_endless_loop() -> None:
    class Mute:
        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(ModelError, match="at least one token"):
        build(SPEC, Mute())


@pytest.mark.parametrize(
    "bad", [{"kind": "riddle"}, {"size": 0}, {"top_k": 0}, {"positions": 0}, {"positions": 11}, {"length": 0}]
)
def test_impossible_sets_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(SPEC, **bad)


def test_words_and_prose_ship() -> None:
    words = probes._words()
    assert len(words) == len(set(words)) >= 500
    assert len(probes._prose()) > 1000
    assert (Path(probes.__file__).parent / "data" / "words.txt").exists()
