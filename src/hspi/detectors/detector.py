"""The detector that ships: trees, calibration, and the libraries of candidates' signatures.

A folder of UBJ, JSON and safetensors files, nothing else. Adding a platform's signatures to a library needs no
retraining.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hspi.detectors.calibration import Calibration, Floats
from hspi.detectors.estimators import Boosted
from hspi.detectors.number_format import NumberFormat
from hspi.detectors.training import OWN_SAMPLES
from hspi.detectors.verifier import Comparisons, class_scores, own_distances, self_scores, verifier_rows
from hspi.detectors.virtual_families import Families
from hspi.errors import DataError, UnknownName
from hspi.evidence import library as libraries
from hspi.evidence.aligned import Aligned, place
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.evidence.replay import F32, pair_features, pair_statistics
from hspi.files import write_text
from hspi.splits import draw
from hspi.verdict import UNKNOWN, Verdict


@dataclass(frozen=True, slots=True)
class Detector:
    """verifier: of (observation, candidate) pairs, whose log-odds `calibration` turns into p-values and a posterior;
    number_format: from residuals; libraries: candidates' signatures, by model.
    """

    verifier: Boosted
    number_format: NumberFormat
    calibration: Calibration
    libraries: dict[str, Library] = field(default_factory=dict)
    _own: dict[tuple[str, int], F32] = field(default_factory=dict, init=False, repr=False, compare=False)
    _told: dict[str, Families] = field(default_factory=dict, init=False, repr=False, compare=False)

    # ------------------------------------------------------------ candidates

    def library(self, model: str) -> Library:
        """Raises UnknownName for a model without one."""
        if model not in self.libraries:
            raise UnknownName("model with a library of signatures", model, self.libraries)
        return self.libraries[model]

    def told(self, model: str) -> Families:
        """What verdicts on this model tell apart. Raises UnknownName for a model without a library."""
        if model not in self._told:
            library = self.library(model)
            self._told[model] = Families.of(library.classes, library.data.platforms)
        return self._told[model]

    def with_library(self, library: Library) -> Detector:
        """The same with this library, in the place of another one of its model."""
        return replace(self, libraries={**self.libraries, library.model: library})

    def without_libraries(self) -> Detector:
        return replace(self, libraries={})

    def slim(self, model: str) -> Detector:
        """With one model's library and levels, if any, and of those only what scores are made from."""
        own = {name: v for name, v in self.calibration.own_scores.items() if name.startswith(f"{model}/")}
        kept = {model: self.libraries[model].lean()} if model in self.libraries else {}
        return replace(self, calibration=replace(self.calibration, own_scores=own), libraries=kept)

    # ------------------------------------------------------------ judging

    def judge(self, seen: Observation, *, alpha: float = 0.01, claim: str | None = None) -> Verdict:
        """The verdict on one observation at the replay level.

        Raises UnknownName for a model without a library, DataError for answers to other probes or of other weights,
        and for a claim that is no candidate.
        """
        told, classes = self.told(seen.model), self.library(seen.model).classes
        scores = told.best(class_scores(self.scores(seen)[None], classes))
        probes, top_k = len(seen.probes), seen.ids.shape[1]
        self._calibrate_joined(seen.model, probes, top_k)
        found = decide(
            scores.score[0],
            told,
            self.calibration,
            probes=probes,
            top_k=top_k,
            model=seen.model,
            alpha=alpha,
            claim=claim,
        )
        if found.answer == UNKNOWN:
            return found
        best = int(scores.best[0, told.names.index(found.answer)])
        return replace(found, nearest=classes.name(best), plan=told.plans[best])

    def scores(self, seen: Observation) -> F32:
        """Natural log-odds that each platform of the library is the observed one: (C,). Raises as `judge` does."""
        data, k = self.library(seen.model).data, seen.ids.shape[1]
        at = _rows(data, seen)
        logprobs, rank = place(data.slots[at], seen.ids, seen.logprobs)
        c, s = data.present.shape
        shape = (c * s, len(at), data.slots.shape[1])
        theirs = data.logprobs[:, :, at].reshape(shape), data.rank[:, :, at].reshape(shape)
        found = pair_statistics(logprobs, rank, *theirs, data.reference[at], k)
        pairs = pair_features(found.mean(axis=1).reshape(c, s, -1), k)
        rows = verifier_rows(pairs, data.present, self._own_of(seen.model, k), len(at), k)
        return self.verifier.margin(rows).astype(np.float32)

    def formats(self, seen: Observation) -> dict[str, float]:
        """Posterior of the number format from residuals alone: {format: probability}. Raises as `judge` does."""
        data = self.library(seen.model).data
        _rows(data, seen)
        return self.number_format.posterior(data, seen)

    def _calibrate_joined(self, model: str, probes: int, k: int) -> None:
        """Levels of platforms that joined after training: their own signatures, setting against setting, give them."""
        told, size = self.told(model), self.calibration.size(probes, k)
        n, top_k = (int(v) for v in size.split("x"))
        data = self.library(model).data
        ids, pool = data.platform_ids(), np.arange(len(data.probes))
        for name, members in zip(told.names, told.members, strict=True):
            own = self.calibration.own_scores.setdefault(f"{model}/{name}", {})
            if size in own:
                continue
            found: list[float] = []
            for platform in members:
                pairs = Comparisons.of(data.only([ids.index(platform)]), top_k)
                samples = draw(pool, min(n, len(pool)), OWN_SAMPLES, np.random.default_rng(0))
                settings = list(range(len(data.nuisances)))
                found.extend(self_scores(self.verifier, pairs, 0, settings, samples, pool).tolist())
            own[size] = sorted(found)

    def _own_of(self, model: str, k: int) -> F32:
        if (model, k) not in self._own:
            self._own[model, k] = own_distances(self.library(model).data, k)[0]
        return self._own[model, k]

    # ------------------------------------------------------------ files

    def save(self, folder: str | Path) -> None:
        """Write the whole folder under a temporary name, then put it in the place of an older detector.

        Raises DataError if something else stands there.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / libraries.CLASSES).exists():
            raise DataError(f"{folder} must be empty or hold a detector, but it holds something else")
        fresh = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self.verifier.save(fresh / "verifier")
        self.number_format.save(fresh / "family")
        write_text(fresh / "calibration.json", self.calibration.to_json())
        libraries.save_classes(self.libraries.values(), fresh, indent=None)
        for library in self.libraries.values():
            library.save(fresh / LIBRARIES)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Detector:
        """Raises DataError if the folder is not one that `save` wrote."""
        folder = Path(folder)
        try:
            found = libraries.load(folder, LIBRARIES)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} must hold a detector, but: {error}; run `hspi train`") from error
        return cls(
            Boosted.load(folder / "verifier"),
            NumberFormat.load(folder / "family"),
            Calibration.read(folder / "calibration.json"),
            {library.model: library for library in found},
        )


LIBRARIES = "library"  # the folder of their arrays


def _rows(data: Aligned, seen: Observation) -> list[int]:
    """The library's rows of the probes that were answered. Raises DataError for answers that are none to them."""
    if not seen.probes:
        raise DataError("an observation must hold at least one probe, but it holds none")
    if seen.weights_hash and data.weights_hash and seen.weights_hash != data.weights_hash:
        raise DataError(f"an observation of {seen.model!r} must come of the library's weights, but its weights differ")
    for name, known in data.probe_hashes.items():
        if seen.probe_hashes.get(name, known) != known:
            raise DataError(f"an observation must answer the library's {name!r} probes, but it answers others")
    index = {p: i for i, p in enumerate(data.probes)}
    try:
        return [index[p] for p in seen.probes]
    except KeyError as error:
        raise DataError(f"probes must be in the library of {seen.model!r}, but {error.args[0]} is not") from error


def decide(
    scores: Floats,
    told: Families,
    calibration: Calibration,
    *,
    probes: int,
    top_k: int,
    model: str,
    alpha: float = 0.01,
    claim: str | None = None,
) -> Verdict:
    """Verdict for one observation at the replay level: scores (F,) of what is told apart.

    The set at 1−α holds every class whose own p-value exceeds α (conformal, so it holds the truth with 1−α whatever
    the detector); "unknown" stands in it when no class does. Raises DataError for a claim that is no candidate.
    """
    post = calibration.posterior(scores)
    p = calibration.p_value(scores, probes, top_k, [f"{model}/{name}" for name in told.names])
    inside = [n for n, value in zip(told.names, p, strict=True) if value > alpha]
    best = int(np.argmax(scores))
    known = bool(inside) and int(np.argmax(post)) < told.count
    claimed = None if claim is None else told.index(claim)
    p_claim = None if claimed is None else float(p[claimed])
    outcome = _outcome(told, claimed, p_claim, best if known else None, len(inside), alpha)
    return Verdict(
        outcome=outcome,
        answer=told.names[best] if known else UNKNOWN,
        members=list(told.members[best]) if known else [],
        posterior={**dict(zip(told.names, map(float, post[:-1]), strict=True)), UNKNOWN: float(post[-1])},
        set_at=inside or [UNKNOWN],
        alpha=alpha,
        claim=claim,
        claim_p_value=p_claim,
        level="replay",
        probes=probes,
        top_k=top_k,
        model=model,
    )


def _outcome(
    told: Families, claimed: int | None, p_value: float | None, answer: int | None, inside: int, alpha: float
) -> str:
    """claimed and answer: classes, if there are any; inside: how many are not excluded."""
    if claimed is None or p_value is None:
        if answer is None:
            return UNKNOWN
        return "identified" if inside == 1 else "inconclusive"
    if p_value <= alpha:  # a virtual GPU's claim falls to another known class alone: no library holds every kernel plan
        return "inconclusive" if told.open_ended[claimed] and answer is None else "contradicted"
    return "consistent" if claimed == answer else "inconclusive"
