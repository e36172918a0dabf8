"""All that an audit brings along, in one folder: settings, probes, vocabulary and the candidates' signatures.

It is written before the first question, so that the same command goes on after a kill, and a replay needs neither
weights, tokenizer nor registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hspi import probes, zoo
from hspi.bundle import Bundle
from hspi.errors import ConfigError, DataError
from hspi.evidence.aligned import Aligned
from hspi.probes import ProbeSpec
from hspi.splits import split_probes
from hspi.zoo import ModelRef

LIBRARIES = ("hspi", "numpy", "openai", "httpx", "xgboost-cpu", "scikit-learn", "pyarrow", "safetensors")


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides an audit. `budget`: output tokens at most; `price`: money for a million tokens, of any kind;
    `window`: questions in flight; `seed` parts the probes as the detector's training did; `order` draws their order.
    """

    base_url: str
    served: str
    model: str
    weights_hash: str
    claim: str | None
    alpha: float
    budget: int
    price: float | None
    window: int
    candidates: list[str]
    seed: int
    order: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """A context, as ids and as text; `exact`: the tokenizer gives the same ids back from the text."""

    set: str
    id: int
    ids: list[int]
    text: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Material:
    """probes: those to ask, in order; warm_up: two others, for finding out what the endpoint gives."""

    settings: Settings
    bundle: Bundle
    probes: list[Probe]
    warm_up: list[Probe]
    vocabulary: list[str]
    facts: dict[str, str]


def prepare(settings: Settings, bundle: Bundle, specs: Sequence[ProbeSpec], ref: ModelRef) -> Material:
    """Material for an audit of `settings.model`, whose library stands in `bundle`.

    Raises ConfigError if the claim is not among the candidates, DataError if the library's probes are not `specs`.
    """
    data = bundle.library[settings.model]
    check_claim(settings.claim, bundle, settings.model)
    tokenizer = zoo.load_tokenizer(ref)
    ours = {s.name: probes.build(s, tokenizer).contexts for s in specs}
    sizes = {s: sum(1 for name, _ in data.probes if name == s) for s, _ in data.probes}
    if any(name not in ours or len(ours[name]) != size for name, size in sizes.items()):
        raise DataError(f"params.yaml must make the probes that the library of {settings.model!r} answers: {sizes}")

    def probe(at: int) -> Probe:
        name, number = data.probes[at]
        ids = ours[name][number].tolist()
        text = tokenizer.decode(ids)
        exact = tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        return Probe(name, number, ids, text, exact)

    split = split_probes(data.probes, settings.seed)
    order = np.random.default_rng([settings.seed, settings.order]).permutation(split.test)[: settings.budget]
    warm_up = sorted((probe(i) for i in split.fit[:40]), key=lambda p: not p.exact)[:2]
    vocabulary = [tokenizer.decode([i]) for i in range(ref.vocab_size)]
    facts = {f"version_{name}": found for name in LIBRARIES if (found := _version(name))}
    return Material(settings, slim(bundle, settings.model), [probe(i) for i in order], warm_up, vocabulary, facts)


def check_claim(claim: str | None, bundle: Bundle, model: str) -> None:
    known = bundle.classes[model].platform_ids
    if claim is not None and claim not in known:
        raise ConfigError(f"claim must be among the candidates {', '.join(known)}, but got {claim!r}")


def slim(bundle: Bundle, model: str) -> Bundle:
    """The bundle with one model's library, and of `raw` only what says which settings were collected."""
    data = bundle.library[model]
    lean: Aligned = replace(data, raw=np.ascontiguousarray(data.raw[..., :1]))
    return Bundle(bundle.verifier, bundle.family, bundle.calibration, {model: lean}, {model: bundle.classes[model]})


def save(material: Material, folder: Path) -> None:
    write_json(folder / "settings.json", asdict(material.settings))
    write_json(folder / "facts.json", material.facts)
    asked = {"probes": [asdict(p) for p in material.probes], "warm_up": [asdict(p) for p in material.warm_up]}
    write_json(folder / "probes.json", asked)
    write_json(folder / "vocabulary.json", material.vocabulary)
    material.bundle.save(folder / "detector")


def load(folder: Path) -> Material:
    """Raises DataError if the folder is not one that `save` wrote."""
    settings = read_settings(folder)
    try:
        asked = _read(folder / "probes.json")
        groups = {name: [Probe(**p) for p in asked[name]] for name in ("probes", "warm_up")}
        vocabulary, facts = _read(folder / "vocabulary.json"), _read(folder / "facts.json")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} must hold an audit, but: {error}") from error
    return Material(settings, Bundle.load(folder / "detector"), groups["probes"], groups["warm_up"], vocabulary, facts)


def read_settings(folder: Path) -> Settings:
    try:
        return Settings(**_read(folder / "settings.json"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder} must hold an audit, but: {error}") from error


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Sorted and indented, under a temporary name first: the same data give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(to_json(data), "utf-8")
    temporary.replace(path)


def to_json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
