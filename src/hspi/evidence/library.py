"""A library: one model's signatures, aligned, with the classes that were measured on them.

What trains, what ships in a detector and what an audit holds an endpoint against are all libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hspi import zoo
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned, align
from hspi.evidence.equivalence import Classes, bits, measure
from hspi.files import read_json, write_json
from hspi.probes import ProbeSpec
from hspi.reference.store import references
from hspi.signatures.store import signatures_of
from hspi.splits import Index, split_probes

CLASSES = "classes.json"


@dataclass(frozen=True, slots=True)
class Library:
    """data: what C platforms answered; classes: of the same C platforms, in their order."""

    data: Aligned
    classes: Classes

    @classmethod
    def measured(cls, data: Aligned, seed: int, top_k: int) -> Library:
        """With equivalence classes, measured on the probes that train and calibrate (`splits.split_probes` by `seed`)
        and on the `top_k` likeliest tokens of each. Compares each setting with each: seconds for a hundred platforms.
        """
        split = split_probes(data.probes, seed)
        part = data.on_probes(np.sort(np.concatenate([split.fit, split.calibrate])))
        return cls(data, measure(part, top_k))

    @property
    def model(self) -> str:
        return self.data.model

    @property
    def platform_ids(self) -> list[str]:
        return self.classes.platform_ids

    def class_of(self, platform: str) -> list[str]:
        """The members of the equivalence class that a platform is in; itself alone where it is not known."""
        return self.classes.members_of(platform)

    def only(self, platforms: Sequence[str]) -> Library:
        """The same, of these platforms alone. Raises DataError if fewer than two are left."""
        at = [i for i, name in enumerate(self.platform_ids) if name in set(platforms)]
        if len(at) == len(self.platform_ids):
            return self
        if len(at) < 2:
            raise DataError(f"there must be at least 2 candidates for {self.model!r}, but got {len(at)}")
        return Library(self.data.only(at), self.classes.only(at))

    def distinct(self) -> Library:
        """Without platforms that answered as an earlier one did, bit for bit, under every setting: to compare one of
        them is to compare all."""
        seen: dict[str, str] = {}
        for i, name in enumerate(self.platform_ids):
            seen.setdefault(bits(self.data, i), name)
        return self.only(list(seen.values()))

    def joined(self, other: Aligned, seed: int, top_k: int) -> Library:
        """With another one's platforms beside its own; the classes are measured anew. Raises as `Aligned.joined`."""
        return Library.measured(self.data.joined(other), seed, top_k)

    def on_probes(self, pool: Index) -> Library:
        """The same, on these probes alone; the classes stay those that were measured on all."""
        return replace(self, data=self.data.on_probes(pool))

    def lean(self) -> Library:
        """With that alone from which verdicts are made: of `raw` enough to say which settings were collected."""
        first = np.ascontiguousarray(self.data.raw[..., :1])
        return replace(self, data=replace(self.data, raw=first))

    def save(self, folder: Path) -> Path:
        """Its arrays as FOLDER/<model>.safetensors; `save_classes` writes what all libraries' classes are."""
        path = folder / f"{Path(self.model).name}.safetensors"
        self.data.save(path)
        return path


def save_classes(libraries: Iterable[Library], folder: Path, indent: int | None = 1) -> Path:
    """FOLDER/classes.json, a record of each library, which `load` begins with. Returns its path."""
    rows = [library.classes.to_dict() for library in libraries]
    return write_json(folder / CLASSES, rows, indent=indent, sort_keys=False, end="")


def load(folder: str | Path, arrays: str = "") -> list[Library]:
    """The libraries whose classes stand in FOLDER/classes.json, and whose arrays below FOLDER/`arrays`.

    Raises OSError or ValueError where the classes are not there, DataError where an array is not what it must be.
    """
    folder = Path(folder)
    rows: list[Mapping[str, Any]] = read_json(folder / CLASSES)
    every = [Classes.from_dict(dict(row)) for row in rows]
    return [Library(Aligned.load(folder / arrays / f"{Path(c.model).name}.safetensors"), c) for c in every]


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
    """Write OUT/<model>.safetensors for each model and OUT/classes.json. Returns the files.

    models: zoo ids, folders or hub ids; specs: the probe sets that signatures answer; store, reference_folder: folders
    of signatures and of float64 references, of which missing ones are made; seed, top_k: as `Library.measured` has
    them; platforms: those alone, or all. Raises DataError where a model has no signature, or they are not to the specs.
    """
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


def features(folder: str | Path) -> list[Library]:
    """What `featurize` wrote, model by model. Raises DataError if it is not there."""
    try:
        return load(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} must hold features, but: {error}; run `hspi featurize`") from error
