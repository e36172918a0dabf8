"""References and predictions on disk: made once for each (weights, probes), then read.

A file appears whole or not at all; its name is a hash of everything that it depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi import probes, zoo
from hspi.files import read_array, write_array
from hspi.platforms.record import Context
from hspi.probes import ProbeSpec
from hspi.reference import hypotheses, logits
from hspi.reference.hypotheses import NAMES, Predicted, predicted
from hspi.reference.logits import Reference, likeliest, reference_logits
from hspi.zoo import ModelRef


def references(
    model: str, specs: Sequence[ProbeSpec], folder: str | Path
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float32]]]:
    """After the last token of each probe, by set: float64 logits (size, vocab), and what each hypothesis of a number
    format would change on the likeliest tokens, float32 (H, size, SLOTS). Made once, then read.
    """
    ref = zoo.resolve(model)
    tokenizer = zoo.load_tokenizer(ref)
    exact, foretold = {}, {}
    for spec in specs:
        probe_set = probes.build(spec, tokenizer)
        contexts = list(probe_set.contexts)
        exact[spec.name] = cached_reference(ref, probe_set.hash, contexts, 1, folder)[:, -1]
        tokens = likeliest(exact[spec.name])
        foretold[spec.name] = cached_predictions(ref, probe_set.hash, contexts, tokens, folder)
    return exact, foretold


def cached_reference(
    ref: ModelRef, probe_set_hash: str, contexts: list[Context], positions: int, cache_dir: str | Path
) -> Reference:
    """`reference_logits`, made once for each (weights, probe set, positions) and then read from `cache_dir`.

    A file appears whole or not at all; one that is not what its name says is made again. Raises as
    `reference_logits` does.
    """
    path = reference_path(ref, probe_set_hash, positions, cache_dir)
    found = read_array(path, (len(contexts), positions, ref.vocab_size), np.float64)
    if found is None:
        found = reference_logits(ref, contexts, positions)
        write_array(path, found)
    return found


def reference_path(ref: ModelRef, probe_set_hash: str, positions: int, cache_dir: str | Path) -> Path:
    """Where the reference is or will be."""
    return _path(f"{logits.VERSION}:{ref.weights_hash}:{probe_set_hash}:{positions}", cache_dir)


def _path(key: str, cache_dir: str | Path) -> Path:
    return Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def cached_predictions(
    ref: ModelRef, probe_set_hash: str, contexts: list[Context], tokens: npt.NDArray[np.int32], cache_dir: str | Path
) -> Predicted:
    """`predicted`, made once for each (weights, probe set, tokens) and then read from `cache_dir`."""
    chosen = hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()
    names = ",".join(NAMES)
    key = f"hypotheses:{hypotheses.VERSION}:{names}:{ref.weights_hash}:{probe_set_hash}:{chosen}"
    path = _path(key, cache_dir)
    found = read_array(path, (len(NAMES), *tokens.shape), np.float32)
    if found is None:
        found = predicted(ref, contexts, tokens)
        write_array(path, found)
    return found
