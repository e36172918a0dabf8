"""Signatures and references → the aligned arrays and equivalence classes that every detector reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi import probes, zoo
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned, align, likeliest
from hspi.evidence.equivalence import Classes, measure
from hspi.evidence.replay import all_pair_statistics
from hspi.files import read_json, write_json
from hspi.hypotheses import cached_predictions
from hspi.probes import ProbeSpec
from hspi.reference import cached_reference
from hspi.signatures import Signature, iter_store, read_header, read_signature
from hspi.splits import split_probes

CLASSES = "classes.json"


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
    out = Path(out)
    paths, classes = [], []
    for name in models:
        ref = zoo.resolve(name)
        found = signatures_of(store, ref.id, ref.weights_hash, platforms)
        logits, predicted = references(name, specs, reference_folder)
        data = align(ref.id, found, logits, predicted=predicted)
        path = out / f"{Path(ref.id).name}.safetensors"
        data.save(path)
        paths.append(path)
        classes.append(classify(data, seed, top_k).to_dict())
        on_model(name)
    return [*paths, write_json(out / CLASSES, classes, sort_keys=False, end="")]


def classify(data: Aligned, seed: int, top_k: int) -> Classes:
    """The model's equivalence classes, measured on the probes that train and calibrate."""
    split = split_probes(data.probes, seed)
    pool = np.sort(np.concatenate([split.fit, split.calibrate]))
    c, s = data.present.shape
    every = [(i, j) for i in range(c) for j in range(s)]
    part = data.on_probes(pool)
    statistics = all_pair_statistics(part, every, top_k)
    return measure(part, statistics.reshape(c, s, *statistics.shape[1:]))


def load(folder: str | Path) -> list[tuple[Aligned, Classes]]:
    """What `featurize` wrote, model by model. Raises DataError if it is not there."""
    folder = Path(folder)
    try:
        rows = read_json(folder / CLASSES)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} must hold features, but: {error}; run `hspi featurize`") from error
    return [(Aligned.load(folder / f"{Path(row['model']).name}.safetensors"), Classes.from_dict(row)) for row in rows]
