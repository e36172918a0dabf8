"""Replies that no honest server sends, and those that several kinds of honest servers do."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hspi.audits.answers import UNKNOWN_ID, Names, decimals, read_answer

NAMES = Names(["a", "b", "c", "same", "same", " d"])


def completion(top: Any, tokens: Any = ("a",)) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"tokens": list(tokens), "top_logprobs": [top]}}]}


def chat(*records: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": list(records)}]}}]}


def test_three_shapes_say_the_same() -> None:
    by_text = read_answer(completion({"a": -1.5, "c": -2.5}), NAMES)
    by_id = read_answer(completion({"token_id:2": -2.5, "token_id:0": -1.5}, ["token_id:0"]), NAMES)
    by_record = read_answer(
        chat({"token": "?", "id": 2, "logprob": -2.5}, {"token": "?", "id": 0, "logprob": -1.5}), NAMES
    )
    for answer in (by_text, by_id, by_record):
        assert answer.ids.tolist() == [0, 2] and answer.logprobs.tolist() == [-1.5, -2.5] and answer.token == 0


def test_bits_of_float32_survive_json() -> None:
    values = -np.random.default_rng(0).exponential(3, 5).astype(np.float32) - 2
    text = json.dumps(completion({f"token_id:{i}": float(v) for i, v in enumerate(values)}))
    answer = read_answer(json.loads(text), NAMES)
    assert sorted(answer.logprobs.tobytes()) == sorted(values.tobytes())


def test_a_text_that_two_tokens_share_names_neither() -> None:
    answer = read_answer(completion({"same": -1.0, "b": -2.0}), NAMES)
    assert answer.ids.tolist() == [UNKNOWN_ID, 1] and answer.foreign == 0


def test_names_outside_the_vocabulary_are_counted() -> None:
    answer = read_answer(completion({"▁a": -1.0, "token_id:6": -2.0, "token_id:x": -3.0}), NAMES)
    assert answer.foreign == 3 and (answer.ids == UNKNOWN_ID).all()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [{}, {}]},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": []}}]},
        completion(None),
        completion({}, ["a"]),
        completion({"a": -1.0}, ["a", "b"]),
        completion({"a": None, "b": -1.0}),
        completion({"a": "-1", "b": -1.0}),
        completion({"a": True, "b": -1.0}),
        completion({"a": math.nan, "b": -1.0}),
        completion({"a": -math.inf, "b": -1.0}),
        completion({"a": 0.5, "b": -1.0}),
        completion({"a": -0.1, "b": -0.1}),
        completion({"a": -1.0, "token_id:0": -2.0}),
        chat({"token": 7, "logprob": -1.0}, {"token": "b", "logprob": -2.0}),
        chat({"token": "a"}, {"token": "b", "logprob": -2.0}),
    ],
)
def test_what_is_no_answer_is_refused_in_one_line(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_answer(data, NAMES, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "logprobs", "content", "tokens", "top_logprobs", "token"]), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.just("choices"), st.lists(st.dictionaries(st.just("logprobs"), JSON), max_size=2)))
def test_no_json_makes_the_reader_crash(data: dict[str, Any]) -> None:
    try:
        answer = read_answer(data, NAMES)
    except ValueError:
        return
    assert np.isfinite(answer.logprobs).all()


@pytest.mark.parametrize("digits", [0, 1, 2, 3, 4, 5])
def test_rounding_is_found(digits: int) -> None:
    values = np.round(-np.random.default_rng(digits).exponential(2, 40) - 0.5, digits)
    assert decimals(values.tolist()) == digits


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_exact_numbers_are_not_taken_for_rounded(kind: type) -> None:
    for seed in range(50):
        values = -np.random.default_rng(seed).exponential(2, 40).astype(kind) - kind(0.1)
        assert decimals([float(v) for v in values]) is None
        flat = -np.random.default_rng(seed).uniform(4, 8, 60).astype(kind)  # where float32's own steps are widest
        assert decimals([float(v) for v in flat]) is None


@pytest.mark.parametrize("digits", [1, 3, 5])
def test_rounding_is_found_behind_float32(digits: int) -> None:
    values = np.round(-np.random.default_rng(digits).uniform(4, 8, 60), digits).astype(np.float32)
    assert decimals([float(v) for v in values]) == digits
