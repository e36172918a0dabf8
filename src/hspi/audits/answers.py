"""From a raw reply to the log-probabilities in it; nothing in a reply is believed before it is checked.

Three shapes are read: OpenAI's completions (a mapping of alternatives), chat completions (a list of records), and
servers that put the token's id into each record. Tokens are named by id ("token_id:7"), by an `id` field, or by text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN_ID = -1  # a token whose name is no token's, or several tokens' at once
SLACK = 1e-4  # by how much rounding may lift a sum of probabilities over 1


@dataclass(frozen=True, slots=True)
class Answer:
    """ids int32 and logprobs float32, (k,), likeliest first, ties by the lower id; `token` is the one written.

    `foreign`: names among them that the model's vocabulary does not hold.
    """

    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    token: int
    foreign: int
    prompt_tokens: int | None
    completion_tokens: int | None


class Names:
    """Text of a token → its id, by the model's own tokenizer; texts that several tokens share name none of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.size = len(texts)
        self._ids: dict[str, int] = {}
        for token, text in enumerate(texts):
            self._ids[text] = UNKNOWN_ID if text in self._ids else token

    def find(self, name: Any) -> tuple[int, bool]:
        """(id or UNKNOWN_ID, whether the vocabulary holds the name at all)."""
        if not isinstance(name, str):
            raise ValueError(f"a token must be named by a string, but got a {type(name).__name__}")
        digits = name.removeprefix("token_id:")
        if digits != name and digits.isdecimal() and len(digits) < 10:
            known = int(digits) < self.size
            return (int(digits) if known else UNKNOWN_ID), known
        return self._ids.get(name, UNKNOWN_ID), name in self._ids


def read_answer(data: dict[str, Any], names: Names, at_least: int = 1) -> Answer:
    """The first token's alternatives in a reply to one question for one token.

    Raises ValueError, in one line, where the reply is not such an answer: no log-probabilities or fewer than
    `at_least`, one that is not a finite number at most 0, a token twice, probabilities that sum to more than 1.
    """
    logprobs = _only(data.get("choices"), "choices").get("logprobs")
    if not isinstance(logprobs, dict):
        raise ValueError("log-probabilities must come, but they did not")
    if isinstance(logprobs.get("content"), list):
        written, pairs = _records(logprobs["content"], names)
    else:
        written, pairs = _mapping(logprobs, names)
    foreign = sum(not known for (_, known), _ in pairs)
    found = [(i, _value(v)) for (i, _), v in pairs]
    _check(found, at_least)
    found.sort(key=lambda pair: (-pair[1], pair[0]))
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    return Answer(
        np.array([i for i, _ in found], np.int32),
        np.array([v for _, v in found], np.float32),
        written,
        foreign,
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def read_text(data: dict[str, Any], symbol: Callable[[Any], int]) -> Answer:
    """The one greedy token of a reply, whatever log-probabilities come: k = 1, its log-probability said to be 0.

    symbol: text → id. Raises ValueError, in one line, where the reply holds no such token.
    """
    choice = _only(data.get("choices"), "choices")
    message = choice.get("message")
    token = symbol(message.get("content") if isinstance(message, dict) else choice.get("text"))
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    counts = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return Answer(np.array([token], np.int32), np.zeros(1, np.float32), token, 0, *counts)


Pairs = list[tuple[tuple[int, bool], Any]]


def _only(items: Any, what: str) -> dict[str, Any]:
    if not isinstance(items, list) or len(items) != 1 or not isinstance(items[0], dict):
        count = len(items) if isinstance(items, list) else type(items).__name__
        raise ValueError(f"{what} must hold exactly one record, but got {count}")
    return items[0]


def _records(content: list[Any], names: Names) -> tuple[int, Pairs]:
    record = _only(content, "logprobs.content")
    top = record.get("top_logprobs")
    if not isinstance(top, list) or not all(isinstance(t, dict) for t in top):
        raise ValueError("top_logprobs must be a list of records, but it is not")
    return _named(record, names)[0], [(_named(t, names), t.get("logprob")) for t in top]


def _named(record: dict[str, Any], names: Names) -> tuple[int, bool]:
    token = record.get("id")
    if type(token) is int:
        return (token, True) if 0 <= token < names.size else (UNKNOWN_ID, False)
    return names.find(record.get("token"))


def _mapping(logprobs: dict[str, Any], names: Names) -> tuple[int, Pairs]:
    tokens, top = logprobs.get("tokens"), logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(top, list) or len(tokens) != 1 or len(top) != 1:
        raise ValueError("tokens and top_logprobs must hold one entry for the one token asked for, but they do not")
    if not isinstance(top[0], dict):
        raise ValueError("top_logprobs must hold a mapping, but it does not")
    return names.find(tokens[0])[0], [(names.find(name), value) for name, value in top[0].items()]


def _value(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise ValueError(f"a log-probability must be a finite number, but got {str(value)[:40]!r}")
    if value > SLACK:
        raise ValueError(f"a log-probability must be at most 0, but got {value:g}")
    return float(value)


def _check(found: list[tuple[int, float]], at_least: int) -> None:
    if len(found) < at_least:
        raise ValueError(f"{at_least} alternatives must come, but {len(found)} did")
    known = [i for i, _ in found if i != UNKNOWN_ID]
    if len(set(known)) < len(known):
        raise ValueError("a token must be reported once, but one came twice")
    total = math.fsum(math.exp(v) for _, v in found)
    if total > 1 + SLACK * 10:
        raise ValueError(f"probabilities must sum to at most 1, but they sum to {total:.4f}")


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < 10**12 else None


def decimals(values: Sequence[float]) -> int | None:
    """To how many decimals an endpoint has rounded these log-probabilities; None if it has not.

    A rounded number that went through float32 is off the grid by half a step of float32 at most. That all values are is
    taken for rounding only where numbers that were not rounded would hardly ever be (once in 10⁹).
    """
    x = np.abs(np.asarray(values, float))
    x = x[(x > 0) & (x < 8)]
    for digits in range(6):
        scaled = x * 10.0**digits
        slack = 1e-6 + 2.0**-23 * scaled
        chance = np.log(np.minimum(2 * slack, 1)).sum()
        if chance < np.log(1e-9) and np.all(np.abs(scaled - np.round(scaled)) <= slack):
            return digits
    return None


def clipped(answer: Answer, k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The k likeliest, padded with UNKNOWN_ID where fewer came: two arrays (k,)."""
    ids = np.full(k, UNKNOWN_ID, np.int32)
    logprobs = np.full(k, np.nan, np.float32)
    m = min(k, len(answer.ids))
    ids[:m], logprobs[:m] = answer.ids[:m], answer.logprobs[:m]
    return ids, logprobs
