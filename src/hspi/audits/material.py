"""All that an audit brings along: settings, probes, vocabulary and the detector with the candidates' signatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi import probes, zoo
from hspi.detectors.detector import Detector
from hspi.detectors.virtual_families import Claimed, Families
from hspi.errors import ConfigError, DataError
from hspi.evidence.aligned import Aligned
from hspi.evidence.library import Library
from hspi.files import version
from hspi.platforms import catalogue
from hspi.platforms.claim import Claim
from hspi.probes import ProbeSpec
from hspi.splits import split_probes
from hspi.zoo import ModelRef

CHAT, SPECIAL = "inside the chat template", "with the tokenizer's special tokens"  # `Probe.variants`
CLEAR = 0.5  # nats by which the best token must lead for rounding not to swap it
LIBRARIES = ("hspi", "numpy", "openai", "httpx", "xgboost-cpu", "scikit-learn", "pyarrow", "safetensors")


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides an audit. `budget`: output tokens at most; `price`: money for a million tokens, of any kind;
    claim: software, with or without its hardware; claim_hardware: a pattern of hardware; `window`: questions in flight;
    `seed` parts the probes as the detector's training did; `order` draws their order;
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
    claim_hardware: str | None = None

    @property
    def claimed(self) -> Claim | None:
        """What is claimed of software and hardware, if anything is."""
        return Claim.parse(self.claim, self.claim_hardware)


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
    def claimed(self) -> Claimed | None:
        """What the claim comes to among the candidates, if there are any."""
        claim, told = self.settings.claimed, self.told
        if claim is None or told is None or self.library is None:
            return None
        return told.claimed(claim, self.library.data.platforms)

    @property
    def told(self) -> Families | None:
        """What a verdict on them tells apart."""
        return None if self.library is None else self.detector.told(self.settings.model)


def prepare(settings: Settings, detector: Detector, specs: Sequence[ProbeSpec], ref: ModelRef) -> Material:
    """Material for an audit of `settings.model`, whose library stands in `detector`, unless nothing was ever collected.

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
    claim = settings.claimed
    if claim is None:
        return
    if settings.model not in detector.libraries:
        if claim.software:
            catalogue.get(claim.software)
        return
    try:
        detector.told(settings.model).claimed(claim, detector.library(settings.model).data.platforms)
    except DataError as error:
        where = "where it runs on this machine, --candidates local,store collects it"
        raise ConfigError(f"{error}: {where}") from error
