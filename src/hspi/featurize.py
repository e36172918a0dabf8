"""Signatures and references → the aligned arrays and equivalence classes that every detector reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi import probes, zoo
from hspi.errors import DataError
from hspi.evidence import library as libraries
from hspi.evidence.aligned import align, likeliest
from hspi.evidence.library import Library, save_classes
from hspi.hypotheses import cached_predictions
from hspi.probes import ProbeSpec
from hspi.reference import cached_reference
from hspi.signatures import Signature, iter_store, read_header, read_signature


def references(
    model: str, specs: Sequence[ProbeSpec], folder: str | Path
) -> tuple[dict[str, npt.NDArray[np.float64]], dict[str, npt.NDArray[np.float32]]]:
    """After the last token of each probe, by set: float64 logits (size, vocab), and what each hypothesis of a number
    format would change on the likeliest tokens, float32 (H, size, SLOTS). Made once, then read.
    """
    ref = zoo.resolve(model)
    tokenizer = zoo.load_tokenizer(ref)
    logits, predicted = {}, {}
    for spec in specs:
        probe_set = probes.build(spec, tokenizer)
        contexts = list(probe_set.contexts)
        logits[spec.name] = cached_reference(ref, probe_set.hash, contexts, 1, folder)[:, -1]
        tokens = likeliest(logits[spec.name])
        predicted[spec.name] = cached_predictions(ref, probe_set.hash, contexts, tokens, folder)
    return logits, predicted


def in_use(root: str | Path, named: Sequence[str]) -> set[str]:
    """Platforms whose signatures count: those of params.yaml, and those that `hspi signatures add` brought.

    What an earlier params.yaml left in the store does not.
    """
    return {*named, *(path.stem for path in Path(root).glob("*.dvc"))}


def signatures_of(
    root: str | Path, model: str, weights_hash: str, platforms: Collection[str] | None = None
) -> list[Signature]:
    """Signatures of these weights in a store, of these platforms or of all.

    Raises DataError if one of that name has other weights, or if there is none.
    """
    found = []
    for path in iter_store(root):
        if platforms is not None and path.parent.parent.name not in platforms:
            continue
        header = read_header(path)
        if header.model != model:
            continue
        if header.weights_hash != weights_hash:
            raise DataError(
                f"{path} must answer for weights {weights_hash[:12]}, but it answers for {header.weights_hash[:12]}"
            )
        found.append(read_signature(path))
    if not found:
        raise DataError(f"{root} must hold signatures of {model!r}, but there is none: run `hspi collect`")
    return found


def featurize(
    models: Sequence[str],
    specs: Sequence[ProbeSpec],
    store: str | Path,
    reference_folder: str | Path,
    out: str | Path,
    seed: int,
    top_k: int,
    on_model: Callable[[str], object] = lambda m: None,
    platforms: Collection[str] | None = None,
) -> list[Path]:
    """Write OUT/<model>.safetensors for each model and OUT/classes.json. Returns the files."""
    out, paths, found = Path(out), [], []
    for name in models:
        ref = zoo.resolve(name)
        signatures = signatures_of(store, ref.id, ref.weights_hash, platforms)
        logits, predicted = references(name, specs, reference_folder)
        library = Library.measured(align(ref.id, signatures, logits, predicted=predicted), seed, top_k)
        paths.append(library.save(out))
        found.append(replace(library, data=None))  # type: ignore[arg-type]  # its arrays may go
        on_model(name)
    return [*paths, save_classes(found, out)]


def load(folder: str | Path) -> list[Library]:
    """What `featurize` wrote, model by model. Raises DataError if it is not there."""
    try:
        return libraries.load(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} must hold features, but: {error}; run `hspi featurize`") from error
