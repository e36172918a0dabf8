"""All that an audit brings along, in one folder: settings, probes, vocabulary and the candidates' signatures.

It is written before the first question, so that the same command goes on after a kill, and a replay needs neither
weights, tokenizer nor registry.
"""

from __future__ import annotations

import lzma
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi import probes, zoo
from hspi.detectors.detector import Detector
from hspi.detectors.virtual_families import Families
from hspi.errors import ConfigError, DataError
from hspi.evidence.aligned import Aligned
from hspi.evidence.library import Library
from hspi.files import read_json, version, whole, write_json
from hspi.platforms import catalogue
from hspi.probes import ProbeSpec
from hspi.splits import split_probes
from hspi.zoo import ModelRef

CHAT, SPECIAL = "inside the chat template", "with the tokenizer's special tokens"  # `Probe.variants`
CLEAR = 0.5  # nats by which the best token must lead for rounding not to swap it
DETECTOR = "detector.zip"
MOST = 4 << 30  # bytes that a detector may unpack to
LIBRARIES = ("hspi", "numpy", "openai", "httpx", "xgboost-cpu", "scikit-learn", "pyarrow", "safetensors")


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides an audit. `budget`: output tokens at most; `price`: money for a million tokens, of any kind;
    `window`: questions in flight; `seed` parts the probes as the detector's training did; `order` draws their order;
    claim_format: where a number format is all that is claimed.
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
    claim_format: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A context, as ids and as text; `exact`: the tokenizer gives the same ids back from the text."""

    set: str
    id: int
    ids: list[int]
    text: str
    exact: bool
    variants: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Material:
    """probes: those to ask, in order; warm_up: two others, for finding out what the endpoint gives.

    special: tokens that a server may leave out of a text; inexact: rows of the library whose text is not `Probe.exact`;
    weights: whether the model can be run for a reference.
    """

    settings: Settings
    detector: Detector
    probes: list[Probe]
    warm_up: list[Probe]
    vocabulary: list[str]
    facts: dict[str, str]
    special: list[int] = field(default_factory=list)
    inexact: list[int] = field(default_factory=list)
    weights: bool = False

    @property
    def library(self) -> Library | None:
        """The candidates, if these weights have any."""
        return self.detector.libraries.get(self.settings.model)

    @property
    def told(self) -> Families | None:
        """What a verdict on them tells apart."""
        return None if self.library is None else self.detector.told(self.settings.model)

    def usable(self, as_ids: bool) -> npt.NDArray[np.bool_]:
        """(P,): which probes of the library can be asked, as ids or as text."""
        found = np.ones(len(self.detector.library(self.settings.model).data.probes), bool)
        found[[] if as_ids else self.inexact] = False
        return found


def prepare(settings: Settings, detector: Detector, specs: Sequence[ProbeSpec], ref: ModelRef) -> Material:
    """Material for an audit of `settings.model`, whose library stands in `bundle`, unless nothing was ever collected.

    Raises ConfigError if the claim is none that can be held against it, DataError if the library's probes are not
    `specs`.
    """
    check_claim(settings, detector)
    tokenizer = zoo.load_tokenizer(ref)
    ours = {s.name: probes.build(s, tokenizer).contexts for s in specs}
    library = detector.libraries.get(settings.model)
    data = None if library is None else library.data
    named = [(name, i) for name in sorted(ours) for i in range(len(ours[name]))] if data is None else data.probes
    sizes = {s: sum(1 for name, _ in named if name == s) for s, _ in named}
    if any(name not in ours or len(ours[name]) != size for name, size in sizes.items()):
        raise DataError(f"params.yaml must make the probes that the library of {settings.model!r} answers: {sizes}")
    every = [_probe(name, number, ours[name][number].tolist(), tokenizer) for name, number in named]
    split = split_probes(named, settings.seed)
    rng = np.random.default_rng([settings.seed, settings.order])
    rest = np.concatenate([split.fit, split.calibrate])  # asked only where no candidate is calibrated on them
    order = [int(i) for i in np.concatenate([rng.permutation(split.test), rng.permutation(rest)])]
    warm_up = _warm_up(split.fit, every, data)
    return Material(
        settings,
        detector.slim(settings.model),
        [every[i] for i in order if i not in warm_up],
        [every[i] for i in warm_up],
        [tokenizer.decode([i]) for i in range(ref.vocab_size)],
        {f"version_{name}": found for name in LIBRARIES if (found := version(name))},
        sorted(int(i) for i in tokenizer.all_special_ids if i < ref.vocab_size),
        [i for i, p in enumerate(every) if not p.exact],
        weights=True,
    )


def _probe(name: str, number: int, ids: list[int], tokenizer: Any) -> Probe:
    text = tokenizer.decode(ids)
    exact = tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    variants = {SPECIAL: list(tokenizer(text)["input_ids"])} if exact else {}
    if exact and getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": text}]
        variants[CHAT] = list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))
    return Probe(name, number, ids, text, exact, {k: v for k, v in variants.items() if v != ids})


def _warm_up(pool: npt.NDArray[np.int64], every: Sequence[Probe], data: Aligned | None) -> list[int]:
    """Two probes whose best token leads clearly but holds little probability, so that a server that draws shows."""

    def order(i: int) -> tuple[bool, bool, float]:
        if data is None:
            return not every[i].exact, False, 0.0
        first, second = data.reference[i, :2]
        return not every[i].exact, bool(first - second < CLEAR), float(first)

    return [int(i) for i in sorted(pool.tolist(), key=order)[:2]]


def check_claim(settings: Settings, detector: Detector) -> None:
    """Raises ConfigError for a claim that neither a candidate nor, without candidates, the catalogue knows."""
    formats = detector.number_format.formats
    if settings.claim_format is not None and settings.claim_format not in formats:
        raise ConfigError(f"a claimed format must be one of {', '.join(formats)}, but got {settings.claim_format!r}")
    if settings.claim is None:
        return
    if settings.model not in detector.libraries:
        catalogue.get(settings.claim)
        return
    try:
        detector.told(settings.model).index(settings.claim)
    except DataError as error:
        where = "where it runs on this machine, --candidates local,store collects it"
        raise ConfigError(f"{error}: {where}") from error


def save(material: Material, folder: Path) -> None:
    write_json(folder / "settings.json", asdict(material.settings))
    write_json(folder / "facts.json", material.facts)
    asked: dict[str, Any] = {name: [asdict(p) for p in getattr(material, name)] for name in ("probes", "warm_up")}
    asked |= {name: getattr(material, name) for name in ("special", "inexact", "weights")}
    write_json(folder / "probes.json", asked)
    write_json(folder / "vocabulary.json", material.vocabulary)
    with tempfile.TemporaryDirectory() as scratch:
        material.detector.save(Path(scratch) / "detector")
        pack(Path(scratch) / "detector", folder / DETECTOR)


def load(folder: Path) -> Material:
    """Raises DataError if the folder is not one that `save` wrote."""
    settings = read_settings(folder)
    try:
        asked = read_json(folder / "probes.json")
        groups = {name: [Probe(**p) for p in asked[name]] for name in ("probes", "warm_up")}
        more = {name: asked[name] for name in ("special", "inexact", "weights")}
        vocabulary, facts = read_json(folder / "vocabulary.json"), read_json(folder / "facts.json")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} must hold an audit, but: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        unpack(folder / DETECTOR, Path(scratch) / "detector")
        detector = Detector.load(Path(scratch) / "detector")
    return Material(settings, detector, groups["probes"], groups["warm_up"], vocabulary, facts, **more)


def pack(source: Path, target: Path) -> None:
    """Every file of a folder into a zip file: the same files give the same bytes."""
    with whole(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(str(path.relative_to(source)))  # dated 1980
            entry.compress_type = zipfile.ZIP_LZMA  # its window is wide enough to see that settings repeat each other
            archive.writestr(entry, path.read_bytes())


def unpack(source: Path, target: Path) -> None:
    """Raises DataError if the file is no zip file, or holds more than any detector does."""
    try:
        with zipfile.ZipFile(source) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MOST:
                raise DataError(f"{source} must hold at most {MOST} bytes, but it holds {size}")
            archive.extractall(target)
    except (OSError, zipfile.BadZipFile, lzma.LZMAError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{source} must hold a detector, but: {error}") from error


def read_settings(folder: Path) -> Settings:
    try:
        return Settings(**read_json(folder / "settings.json"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder} must hold an audit, but: {error}") from error
