"""Signatures and references → the aligned arrays and equivalence classes that every detector reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from hspi import zoo
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned, align
from hspi.evidence.equivalence import Classes, measure
from hspi.evidence.replay import all_pair_statistics
from hspi.files import read_json, write_json
from hspi.probes import ProbeSpec
from hspi.reference.store import references
from hspi.signatures.store import signatures_of
from hspi.splits import split_probes

CLASSES = "classes.json"


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
