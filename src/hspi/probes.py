"""Probe sets: seeded, versioned lists of prompts as token contexts, with a content hash.

Three kinds. `words` are the paper's random words (arXiv 2411.05197, section 4.2: models are led to produce random
words, which spreads the log-probabilities); `text` are windows of natural English; `tokens` are ids drawn uniformly
from the vocabulary. Every context of a set has the same length, so that batches need no padding unless asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError, ModelError

Kind = Literal["words", "text", "tokens"]
KINDS: tuple[Kind, ...] = ("words", "text", "tokens")
VERSION = 1  # raise when the same seed would give other probes


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """How to make a probe set, and how much of each answer a signature keeps."""

    name: str
    kind: Kind
    size: int
    length: int
    seed: int
    positions: int = 1
    top_k: int = 64

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind of a probe set must be one of {KINDS}, but got {self.kind!r}")
        if self.size < 1 or self.top_k < 1:
            raise ConfigError(f"`size >= 1` and `top_k >= 1` must hold, but got {self}")
        if not 1 <= self.positions <= self.length:
            raise ConfigError(f"`1 <= positions <= length` must hold, but got {self}")


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """spec: how it was made; contexts: int64 (size, length); hash: sha256 of kind, version and ids."""

    spec: ProbeSpec
    contexts: npt.NDArray[np.int64]
    hash: str


def build(spec: ProbeSpec, tokenizer: Any) -> ProbeSet:
    """Make the probe set for one tokenizer (a `transformers` one). The same spec gives the same ids, always."""
    rng = np.random.default_rng([spec.seed, VERSION, KINDS.index(spec.kind)])
    if spec.kind == "tokens":
        special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)
        plain = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int64), special)
        contexts = plain[rng.integers(0, len(plain), size=(spec.size, spec.length))]
    else:
        words = _words() if spec.kind == "words" else _prose()
        draw = _random_words if spec.kind == "words" else _window
        contexts = np.stack([_encode(draw(words, rng, spec.length), tokenizer, spec.length) for _ in range(spec.size)])
    return ProbeSet(spec, contexts, content_hash(spec.kind, contexts))


def content_hash(kind: str, contexts: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(f"{kind}:{VERSION}:{contexts.shape}".encode())
    digest.update(np.ascontiguousarray(contexts, dtype="<i8").tobytes())
    return digest.hexdigest()


def _random_words(words: list[str], rng: np.random.Generator, length: int) -> str:
    return " ".join(words[i] for i in rng.integers(0, len(words), size=length))


def _window(words: list[str], rng: np.random.Generator, length: int) -> str:
    # A token covers at most one word here, so `length` words always suffice.
    start = int(rng.integers(0, len(words) - length))
    return " ".join(words[start : start + length])


def _encode(text: str, tokenizer: Any, length: int) -> npt.NDArray[np.int64]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelError(f"a tokenizer must make at least one token of {text!r}, but it makes none")
    while len(ids) < length:  # tokenizers that merge across words
        ids = ids + ids
    return np.asarray(ids[:length], dtype=np.int64)


def _words() -> list[str]:
    return _asset("words.txt").split()


def _prose() -> list[str]:
    return _asset("prose.txt").split()


def _asset(name: str) -> str:
    return (resources.files("hspi") / "data" / name).read_text("utf-8")
