"""Requests as they come in, validated, and answers as they go out, in the fields of OpenAI's API and of vLLM's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.platforms.record import LogProbs

MAX_LOGPROBS = 100
MAX_TOKENS = 4096


class BadRequest(ValueError):
    """What the client asked cannot be done; the message goes back with status 400."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion that was asked for, validated."""

    prompt: npt.NDArray[np.int64]
    max_tokens: int
    top: int | None
    echo: bool
    temperature: float
    seed: int | None
    as_ids: bool


@dataclass(frozen=True, slots=True)
class Written:
    """tokens: ids that were written. rows: for each token of the answer (prompt first where echoed) its id and the
    log-probabilities it was drawn from, None for a prompt's first token."""

    tokens: list[int]
    rows: list[tuple[int, LogProbs | None]]
    stopped: bool


class Vocabulary:
    """Text of tokens, both ways."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self.size = tokenizer, size
        self.stop: int | None = getattr(tokenizer, "eos_token_id", None)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def name(self, token: int, as_ids: bool) -> str:
        return f"token_id:{token}" if as_ids else self.text([token])


# ---------------------------------------------------------------- what comes in


def read_number(body: dict[str, Any], name: str, default: Any, low: float, high: float, kind: type = int) -> Any:
    """A field that is a number in low..high, or `default` where it is not there. Raises BadRequest otherwise."""
    value = body.get(name)
    if value is None:
        return default
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fits or kind(value) != value:
        raise BadRequest(f"{name} must be a number in {low:g}..{high:g}, but got {str(value)[:40]!r}")
    return kind(value)


def read_flag(body: dict[str, Any], name: str) -> bool:
    """A field that is true, or false where it is not there. Raises BadRequest where it is something else."""
    value = body.get(name) or False
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false, but got {str(value)[:40]!r}")
    return value


def read_prompts(prompt: Any, vocabulary: Vocabulary) -> list[list[int]]:
    """Token ids of each prompt, whichever of OpenAI's four forms it came in. Raises BadRequest on a fifth."""
    if isinstance(prompt, str):
        return [vocabulary.encode(prompt)]
    if isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(p, (str, list)) and p for p in prompt):
        return [ids for p in prompt for ids in read_prompts(p, vocabulary)]
    raise BadRequest("prompt must be a string, a list of token ids, or a list of those")


def read_want(ids: list[int], body: dict[str, Any], top: int | None, vocabulary: Vocabulary, limit: int) -> Wanted:
    """What is asked of one prompt, in `limit` tokens at most with its answer. Raises BadRequest if it cannot be."""
    if not ids:
        raise BadRequest("prompt must hold a token, but it is empty")
    if not all(0 <= t < vocabulary.size for t in ids):
        raise BadRequest(f"token ids must lie in 0..{vocabulary.size - 1}")
    tokens = read_number(body, "max_tokens", 16, 0, MAX_TOKENS)
    if len(ids) + tokens > limit:
        raise BadRequest(f"prompt and answer must fit in {limit} tokens, but got {len(ids)} + {tokens}")
    if read_number(body, "n", 1, 1, 1) != 1:
        raise BadRequest("n must be 1")
    return Wanted(
        np.asarray(ids, np.int64),
        tokens,
        top,
        read_flag(body, "echo"),
        float(read_number(body, "temperature", 0.0, 0, 100, float)),
        read_number(body, "seed", None, 0, 2**63),
        read_flag(body, "return_tokens_as_token_ids"),
    )


# ---------------------------------------------------------------- what goes out


def best(row: LogProbs, k: int) -> list[tuple[int, float]]:
    """The k likeliest tokens with exact float32 values as doubles."""
    from hspi.signatures.top_k import top_k

    ids, values = top_k(row[None], k)
    return [(int(i), float(v)) for i, v in zip(ids[0], values[0], strict=True)]


def completion_logprobs(written: Written, want: Wanted, vocabulary: Vocabulary) -> dict[str, Any]:
    """The `logprobs` of a completion: parallel lists, a mapping of alternatives for each token."""
    tokens: list[str] = []
    own: list[float | None] = []
    alternatives: list[dict[str, float] | None] = []
    offsets: list[int] = []
    at = 0
    for token, row in written.rows:
        name = vocabulary.name(token, want.as_ids)
        tokens.append(name)
        own.append(None if row is None else float(row[token]))
        offsets.append(at)
        at += len(vocabulary.text([token]))
        if row is None or not want.top:
            alternatives.append(None)
            continue
        found = {name: float(row[token])}
        for i, value in best(row, want.top):
            found.setdefault(vocabulary.name(i, want.as_ids), value)
        alternatives.append(found)
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": alternatives, "text_offset": offsets}


def chat_logprobs(written: Written, want: Wanted, vocabulary: Vocabulary) -> dict[str, Any]:
    """The `logprobs` of a chat completion: a record for each token, with a list of alternatives."""

    def entry(token: int, value: float) -> dict[str, Any]:
        data = vocabulary.text([token]).encode()
        return {"token": vocabulary.name(token, want.as_ids), "logprob": value, "bytes": list(data)}

    content = []
    for token, row in written.rows:
        assert row is not None, "a chat answer never echoes"
        top = [entry(i, v) for i, v in best(row, want.top)] if want.top else []
        content.append({**entry(token, float(row[token])), "top_logprobs": top})
    return {"content": content}


def envelope(kind: str, model: str, body: bytes, choices: list[Any], prompt: int, written: int) -> dict[str, Any]:
    """The answer around its choices: an id by the request's bytes, and the tokens that were read and written."""
    digest = hashlib.sha256(body).hexdigest()[:24]
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {"id": f"cmpl-{digest}", "object": kind, "model": model, "choices": choices, "usage": usage}
