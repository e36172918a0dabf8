"""All signatures of one model, aligned on the likeliest tokens of its float64 reference.

Every level of evidence but HSPI-LD reads these arrays, so that files are opened once. C platforms, S batch classes of
the platform that has most, P probes (of all sets, last position), K slots (tokens), k stored log-probabilities, H
hypotheses.

A setting is a batch class of its platform (`signatures/batch_classes.py`), the first in place 0: place 1 of two
platforms is two different things. Settings that answered alike, bit for bit, are one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError
from hspi.files import whole
from hspi.platforms.record import Platform
from hspi.reference.hypotheses import NAMES
from hspi.reference.logits import SLOTS, likeliest, normaliser
from hspi.signatures.schema import Signature

ABSENT = 255  # rank of a slot whose token the platform did not report


@dataclass(frozen=True, slots=True)
class Aligned:
    """slots int32 (P, K): token ids, likeliest first by the reference; reference float64 (P, K): their
    log-probabilities. All log-probabilities are natural. probes: (set, number in it), C, S and P in the lists' orders.

    lse float64 (P,): the reference's normaliser, which makes a log-probability a logit; predicted float32 (H, P, K):
    what each of `reference.hypotheses.NAMES` would add to the logits. Both are NaN where they were not given.

    logprobs float32 (C, S, P, K): exact bits, NaN where a token was not reported; rank uint8 (C, S, P, K): place in
    the platform's own order, ABSENT where not reported; raw float32 (C, S, P, k): the platform's own order.
    settings: of each platform, its classes by name, each with its batch sizes ("1-2 16-64", or those that were tried);
    steady: of each, whether its bits are those of its class whatever shares the batch; complete: of each, whether its
    classes were looked for, so that within the sizes tried there is no other. weights_hash and probe_hashes (by set):
    what was answered with, and to; empty where not known.
    """

    model: str
    platforms: list[Platform]
    settings: list[dict[str, str]]
    probes: list[tuple[str, int]]
    slots: npt.NDArray[np.int32]
    reference: npt.NDArray[np.float64]
    logprobs: npt.NDArray[np.float32]
    rank: npt.NDArray[np.uint8]
    raw: npt.NDArray[np.float32]
    lse: npt.NDArray[np.float64] = field(default=None)  # type: ignore[arg-type]
    predicted: npt.NDArray[np.float32] = field(default=None)  # type: ignore[arg-type]
    weights_hash: str = ""
    probe_hashes: dict[str, str] = field(default_factory=dict)
    steady: list[bool] = field(default_factory=list)
    complete: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        p, k = self.slots.shape
        if self.lse is None:
            object.__setattr__(self, "lse", np.full(p, np.nan))
        for name in ("steady", "complete"):
            if not getattr(self, name):
                object.__setattr__(self, name, [False] * len(self.platforms))
        if self.predicted is None:
            object.__setattr__(self, "predicted", np.full((len(NAMES), p, k), np.nan, np.float32))

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(C, S): which settings were collected."""
        return np.asarray(np.isfinite(self.raw[:, :, :, 0]).all(axis=2))

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(platform, setting) of all that was collected."""
        return [(int(c), int(s)) for c, s in zip(*np.nonzero(self.present), strict=True)]

    @property
    def residual(self) -> npt.NDArray[np.float32]:
        """(C, S, P, K): log-probability less the reference; each position keeps its normaliser's shift."""
        return (self.logprobs - self.reference).astype(np.float32)

    def repeats(self, platform: int, setting: int) -> bool:
        """Whether the platform answers so again, bit for bit, when its batch is of that class. A steady one does, and
        so does any that is asked alone, or that answered alike in several companies.
        """
        sizes = list(self.settings[platform].values())[setting]
        return self.steady[platform] or sizes == "1" or len(sizes.split()) > 1

    @property
    def restless(self) -> npt.NDArray[np.bool_]:
        """(C, S): the settings under which a platform does not repeat itself."""
        at = zip(*np.nonzero(self.present), strict=True)
        out = np.zeros(self.present.shape, bool)
        for c, s in at:
            out[c, s] = not self.repeats(c, s)
        return out

    def beside(self, platform: int, setting: int) -> npt.NDArray[np.bool_]:
        """(C, S): the settings that stand in a library beside what a platform answered under one.

        All, where it repeats itself: its class answers so again. Else it answers otherwise in another company, and none
        that kept the same company stands there, its own or a twin's, for whoever is asked is not in it.
        """
        usable = self.present
        if self.repeats(platform, setting):
            return usable
        name, restless = list(self.settings[platform])[setting], self.restless
        for c, names in enumerate(self.settings):
            at = list(names).index(name) if name in names else -1
            if c == platform or (at >= 0 and restless[c, at] and usable[c].sum() > 1):
                usable[c, at] = False
        return usable

    def platform_ids(self) -> list[str]:
        return [p.id for p in self.platforms]

    def on_probes(self, pool: npt.NDArray[np.int64]) -> Aligned:
        """The same, of these probes alone."""
        return replace(
            self,
            probes=[self.probes[i] for i in pool],
            slots=self.slots[pool],
            reference=self.reference[pool],
            lse=self.lse[pool],
            predicted=self.predicted[:, pool],
            logprobs=self.logprobs[:, :, pool],
            rank=self.rank[:, :, pool],
            raw=self.raw[:, :, pool],
        )

    def only(self, platforms: list[int]) -> Aligned:
        """The same, of these platforms alone."""
        return replace(
            self,
            logprobs=self.logprobs[platforms],
            rank=self.rank[platforms],
            raw=self.raw[platforms],
            platforms=[self.platforms[i] for i in platforms],
            settings=[self.settings[i] for i in platforms],
            steady=[self.steady[i] for i in platforms],
            complete=[self.complete[i] for i in platforms],
        )

    def joined(self, other: Aligned) -> Aligned:
        """The same, with another one's platforms beside its own; settings are those of both.

        Raises DataError if the other answers other probes, or stands in other slots.
        """
        clash = any(other.probe_hashes.get(name, known) != known for name, known in self.probe_hashes.items())
        if clash or self.probes != other.probes or not np.array_equal(self.slots, other.slots):
            raise DataError(f"signatures of {self.model!r} must answer the detector's own probes, but these do not")
        most = max(self.logprobs.shape[1], other.logprobs.shape[1])

        def both(name: str, empty: float) -> npt.NDArray[Any]:
            return np.concatenate([_widened(getattr(d, name), most, empty) for d in (self, other)])

        return replace(
            self,
            platforms=[*self.platforms, *other.platforms],
            settings=[*self.settings, *other.settings],
            steady=[*self.steady, *other.steady],
            complete=[*self.complete, *other.complete],
            logprobs=both("logprobs", np.nan),
            rank=both("rank", ABSENT),
            raw=both("raw", np.nan),
        )

    def with_observation(
        self, logprobs: npt.NDArray[np.float32], rank: npt.NDArray[np.uint8], raw: npt.NDArray[np.float32]
    ) -> Aligned:
        """The same probes, with one observation (P, K) in the place of all platforms."""
        one = self.platforms[:1]
        return replace(
            self,
            platforms=one,
            settings=[{"observed": ""}],
            steady=[False],
            complete=[False],
            logprobs=logprobs[None, None],
            rank=rank[None, None],
            raw=raw[None, None],
        )

    def save(self, path: Path) -> None:
        """One safetensors file; names travel in its metadata. Of platforms' arrays it holds the rows that there are."""
        from safetensors.numpy import save_file

        rows = np.asarray(self.rows, np.int32).reshape(-1, 2)
        arrays = {n: np.ascontiguousarray(getattr(self, n)) for n in _SHARED}
        arrays |= {n: np.ascontiguousarray(getattr(self, n)[rows[:, 0], rows[:, 1]]) for n in _EMPTY}
        arrays["rows"] = rows
        names = {
            "model": self.model,
            "platforms": [p.to_dict() for p in self.platforms],
            "settings": self.settings,
            "steady": self.steady,
            "complete": self.complete,
            "probes": self.probes,
            "hypotheses": NAMES,
            "weights_hash": self.weights_hash,
            "probe_hashes": self.probe_hashes,
        }
        with whole(path) as temporary:
            save_file(arrays, temporary, metadata={"hspi": json.dumps(names)})

    @classmethod
    def load(cls, path: Path) -> Aligned:
        """Raises DataError if the file is not one that `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as f:
                names: dict[str, Any] = json.loads(f.metadata()["hspi"])
                arrays = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118 - it is no mapping
            if names["hypotheses"] != list(NAMES):
                raise ValueError(f"their hypotheses are {names['hypotheses']}; run it again")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} must be features written by `hspi featurize`, but: {error}") from error
        platforms = [Platform.from_dict(p) for p in names["platforms"]]
        probes = [(str(s), int(i)) for s, i in names["probes"]]
        more = {n: names[n] for n in ("weights_hash", "probe_hashes", "steady", "complete") if n in names}
        settings = names.get("settings") or [dict.fromkeys(names["nuisances"], "") for _ in platforms]  # an older file
        if (rows := arrays.pop("rows", None)) is not None:
            shape = len(platforms), max((len(s) for s in settings), default=0)
            arrays |= {n: _spread(arrays[n], rows, shape, empty) for n, empty in _EMPTY.items()}
        return cls(names["model"], platforms, settings, probes, **arrays, **more)


def _spread(
    values: npt.NDArray[Any], rows: npt.NDArray[np.int32], shape: tuple[int, int], empty: float
) -> npt.NDArray[Any]:
    """Rows (R, …) in their places of (C, S, …)."""
    out = np.full((*shape, *values.shape[1:]), empty, values.dtype)
    out[rows[:, 0], rows[:, 1]] = values
    return out


def _widened(array: npt.NDArray[Any], settings: int, empty: float) -> npt.NDArray[Any]:
    """The array (C, S, …) with places for so many settings, those that it lacks empty."""
    out = np.full((len(array), settings, *array.shape[2:]), empty, array.dtype)
    out[:, : array.shape[1]] = array
    return out


_SHARED = ("slots", "reference", "lse", "predicted")
_EMPTY = {"logprobs": np.nan, "rank": ABSENT, "raw": np.nan}  # what stands where a platform has no such class


def place(
    slots: npt.NDArray[np.int32], ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Put reported tokens into their slots.

    slots (P, K); ids and logprobs (P, k), most likely first, id -1 where fewer came. Returns logprobs float32 (P, K)
    with NaN where not reported, and rank uint8 (P, K).
    """
    p, k = ids.shape
    out = np.full(slots.shape, np.nan, np.float32)
    rank = np.full(slots.shape, ABSENT, np.uint8)
    order = np.argsort(slots, axis=1)
    for i in range(p):
        at = np.searchsorted(slots[i], ids[i], sorter=order[i])
        where = order[i][np.minimum(at, slots.shape[1] - 1)]
        found = slots[i][where] == ids[i]
        out[i, where[found]] = logprobs[i, found]
        rank[i, where[found]] = np.arange(k, dtype=np.uint8)[found]
    return out, rank


def align(
    model: str,
    signatures: Sequence[Signature],
    reference: dict[str, npt.NDArray[np.float64]],
    stored: int = 64,
    predicted: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Aligned:
    """Build the arrays from signatures of one model.

    reference: for each probe set, float64 logits (size, vocab) after the last position; predicted: float32
    (H, size, K) for their `likeliest` tokens; stored: log-probabilities kept in `raw` at most. Signatures of other sets
    are left out. Raises DataError if two signatures of one probe set answer different probes, or probes that the
    reference does not hold, or if they are of several weights.
    """
    sets = sorted(reference)
    sizes = {s: len(reference[s]) for s in sets}
    start = {s: sum(sizes[x] for x in sets[:i]) for i, s in enumerate(sets)}
    probes = [(s, i) for s in sets for i in range(sizes[s])]
    slots = np.concatenate([likeliest(reference[s]) for s in sets])
    lse = np.concatenate([normaliser(reference[s]) for s in sets])
    logits = np.concatenate([np.take_along_axis(reference[s], likeliest(reference[s]), axis=1) for s in sets])
    mine = [s for s in signatures if s.header.probe_set in start]
    placed = {id(s): s.header.placed for s in mine}
    platforms = {p.id: p for p in placed.values()}
    names = sorted(platforms)
    found = [_settings([s for s in mine if placed[id(s)].id == name]) for name in names]
    shape = (len(names), max(len(f.sizes) for f in found), len(probes))
    logprobs = np.full((*shape, SLOTS), np.nan, np.float32)
    rank = np.full((*shape, SLOTS), ABSENT, np.uint8)
    raw = np.full((*shape, stored), np.nan, np.float32)
    hashes: dict[str, str] = {}
    for signature in mine:
        h = signature.header
        full = placed[id(signature)].id
        if hashes.setdefault(h.probe_set, h.probe_hash) != h.probe_hash:
            raise DataError(f"signatures of {h.probe_set!r} must answer one list of probes: {full} does not")
        last = signature.last_position()
        if last.probe_id.max() >= sizes[h.probe_set]:
            raise DataError(
                f"signatures of {h.probe_set!r} must answer the {sizes[h.probe_set]} probes of the reference, "
                f"but {full} answers probe {last.probe_id.max()}"
            )
        c = names.index(full)
        s = found[c].place.get(h.nuisance.name)
        if s is None:  # it answered as another setting did
            continue
        at = start[h.probe_set] + last.probe_id
        k = min(stored, h.top_k)
        logprobs[c, s, at], rank[c, s, at] = place(slots[at], last.topk_ids[:, :k], last.topk_logprobs[:, :k])
        raw[c, s, at, :k] = last.topk_logprobs[:, :k]
    weights = {s.header.weights_hash for s in signatures}
    if len(weights) > 1:
        raise DataError(f"signatures of {model!r} must answer with one model's weights, but got {len(weights)}")
    return Aligned(
        model,
        [platforms[n] for n in names],
        [f.sizes for f in found],
        probes,
        slots,
        logits - lse[:, None],
        logprobs,
        rank,
        raw,
        lse,
        None if predicted is None else np.concatenate([predicted[s] for s in sets], axis=1),  # type: ignore[arg-type]
        weights_hash="".join(weights),
        probe_hashes=hashes,
        steady=[f.steady for f in found],
        complete=[f.complete for f in found],
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """One platform's batch classes: sizes by name, the place of each that is kept, and what is known of them."""

    sizes: dict[str, str]
    place: dict[str, int]
    steady: bool
    complete: bool


def _settings(signatures: Sequence[Signature]) -> _Settings:
    """What one platform's signatures say of its classes; without a search, what equal bits say.

    Where nobody looked for classes, a size at which each answer is that of another size is no class of its own, for
    there the place in the batch decides; and a platform whose settings, three or more, are classes of their own each
    is unsteady.
    """
    sizes = {s.header.nuisance.name: s.header.nuisance.batch_size for s in signatures}
    order = sorted(sizes, key=lambda n: (sizes[n], n))
    answers: dict[str, Answers] = {name: {} for name in order}
    for s in signatures:
        answers[s.header.nuisance.name] |= _answers(s)
    searched = next((s.header.batch_classes for s in signatures if s.header.batch_classes), None)
    found = searched.sizes if searched and searched.steady else {}
    words: dict[str, set[str]] = {}
    for name in order:
        alike = next((n for n in words if answers[n] == answers[name]), name)
        words.setdefault(alike, set()).update(found.get(name, str(sizes[name])).split())
    for name in list(words)[1:]:  # alone, nothing is mixed
        for n in (parts := _mixed(answers[name], {n: answers[n] for n in words if n != name})):
            words[n] |= words[name]
        if parts:
            del words[name]
    kept = {name: " ".join(sorted(some, key=lambda w: int(w.partition("-")[0]))) for name, some in words.items()}
    steady = searched.steady if searched else not (len(order) == len(kept) >= 3)
    complete = bool(searched and searched.steady and set(searched.sizes) <= set(order))
    return _Settings(kept, {name: i for i, name in enumerate(kept)}, steady, complete)


def _answers(s: Signature) -> Answers:
    """All bits of each probe's answer."""
    ids, logprobs = (x.reshape(-1, s.header.positions * s.header.top_k) for x in (s.topk_ids, s.topk_logprobs))
    probes = s.probe_id[:: s.header.positions].tolist()
    return {(s.header.probe_set, i): a.tobytes() + b.tobytes() for i, a, b in zip(probes, ids, logprobs, strict=True)}


Answers = dict[tuple[str, int], bytes]


def _mixed(own: Answers, others: dict[str, Answers]) -> list[str]:
    """The settings that these answers are of, if each of them is of one."""
    if not all(any(some.get(probe) == bits for some in others.values()) for probe, bits in own.items()):
        return []
    return [n for n, some in others.items() if any(some.get(probe) == bits for probe, bits in own.items())]
