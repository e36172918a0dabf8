"""The detector that ships: trees, calibration, and the libraries of candidates' signatures.

A folder of UBJ, JSON and safetensors files, nothing else. Adding a platform's signatures to a library needs no
retraining.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hspi.detectors.calibration import AGREES, Calibration, Floats
from hspi.detectors.estimators import Boosted
from hspi.detectors.grounds import Grounds, against_format, not_tested
from hspi.detectors.number_format import BLOCKS, Formats, NumberFormat
from hspi.detectors.training import OWN_SAMPLES
from hspi.detectors.verifier import (
    Comparisons,
    class_scores,
    log_odds,
    own_distances,
    self_rows,
    self_scores,
    verifier_rows,
)
from hspi.detectors.virtual_families import Claimed, Families
from hspi.errors import DataError, UnknownName
from hspi.evidence import library as libraries
from hspi.evidence.aligned import Aligned, place
from hspi.evidence.library import Library
from hspi.evidence.observation import Observation
from hspi.evidence.replay import F32, LOG_DISTANCE, nearest_setting, pair_features, pair_statistics
from hspi.files import write_text
from hspi.platforms.claim import Claim
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

    def judge(self, seen: Observation, *, alpha: float = 0.01, claim: Claim | None = None) -> Verdict:
        """The verdict on one observation at the replay level.

        Raises UnknownName for a model without a library, DataError for answers to other probes or of other weights,
        and for a claim of software that neither a candidate nor the catalogue is.
        """
        told, library = self.told(seen.model), self.library(seen.model)
        beside = self.beside(seen)
        scores = told.best(class_scores(beside.scores[None], library.classes))
        probes, top_k = len(seen.probes), seen.ids.shape[1]
        self._calibrate_joined(seen.model, probes, top_k)
        found = decide(
            scores.score[0], told, self.calibration, probes=probes, top_k=top_k, model=seen.model, alpha=alpha
        )
        best = None if found.answer == UNKNOWN else int(scores.best[0, told.names.index(found.answer)])
        if best is not None:
            name = library.classes.name(best)
            found = replace(
                found, nearest=name, plan=told.plans[best], batch_class=self.batch_class(seen.model, name, beside)
            )
        return found if claim is None else self._of_claim(found, seen, beside, claim)

    def _of_claim(self, found: Verdict, seen: Observation, beside: Beside, claim: Claim) -> Verdict:
        """The verdict with what it says of a claim."""
        told, library = self.told(seen.model), self.library(seen.model)
        claimed = told.claimed(claim, library.data.platforms)
        p = max((found.p_values[told.names[c]] for c in claimed.classes), default=None)
        other = self.grounds(seen.model).decides(claimed.platforms, claimed.hardware, Grounds.same(beside.pairs))
        excluded = p is not None and (p <= found.alpha or bool(other))
        ground = self.against(seen, claimed, beside) if excluded or p is None else ""
        outcome, why = "inconclusive", ""
        if p is None and not ground:
            why = not_tested(str(claim), claimed.format, self.told_format(seen))
        elif ground:
            outcome, why = "contradicted", f"{claim} is excluded: {ground}" if p is not None else ground
        elif excluded:
            why = f"no signature of {claim} fits, {NO_GROUND}"
        elif found.answer in [told.names[c] for c in claimed.classes]:
            outcome = "consistent"
        lost = outcome == "contradicted"
        return replace(
            found,
            outcome=outcome,
            why=why,
            claim=str(claim),
            claim_p_value=p,
            tested=[library.data.platforms[i].id for i in claimed.platforms],
            failed_factors=told.factors(claimed, found.members, library.data.platforms) if lost else {},
        )

    def against(self, seen: Observation, claimed: Claimed, beside: Beside | None = None) -> str:
        """What speaks against an excluded claim besides (`grounds`), or nothing. Raises as `judge` does."""
        beside = beside or self.beside(seen)
        if Grounds.same(beside.pairs)[list(claimed.platforms)].any():
            return ""
        ground = self.grounds(seen.model).against(claimed.platforms, claimed.hardware, beside.fits, beside.pairs)
        return ground or against_format(self.told_format(seen), claimed.format)

    def told_format(self, seen: Observation) -> Formats | None:
        """What the residuals say of the number format; None where too few answers came, or nothing is foretold."""
        data = self.library(seen.model).data
        if len(seen.probes) < FEWEST or not np.isfinite(data.predicted).all():
            return None
        return self.number_format.tell(data, seen)

    def beside(self, seen: Observation) -> Beside:
        """An observation beside every platform of its model's library. Raises as `judge` does."""
        data, k = self.library(seen.model).data, seen.ids.shape[1]
        at = _rows(data, seen)
        logprobs, rank = place(data.slots[at], seen.ids, seen.logprobs)
        c, s = data.present.shape
        shape = (c * s, len(at), data.slots.shape[1])
        theirs = data.logprobs[:, :, at].reshape(shape), data.rank[:, :, at].reshape(shape)
        found = pair_statistics(logprobs, rank, *theirs, data.reference[at], k).reshape(c, s, len(at), -1)
        pairs = pair_features(nearest_setting(found, data.present).mean(axis=1), k)
        rows = verifier_rows(pairs, self._own_of(seen.model, k), len(at), k)
        scores = log_odds(self.verifier, rows)
        fits = self.grounds(seen.model).fits(pairs, scores >= AGREES)
        return Beside(pairs, scores, fits, found[..., LOG_DISTANCE].mean(axis=2))

    def batch_class(self, model: str, platform: str, beside: Beside) -> str:
        """The batch class of a platform that is nearest to an observation, as "b3 (3-15)"."""
        data = self.library(model).data
        i = data.platform_ids().index(platform)
        distance = np.where(data.present[i], beside.distance[i], np.inf)
        name, sizes = list(data.settings[i].items())[int(np.argmin(distance))]
        return f"{name} ({sizes})" if sizes else name

    def grounds(self, model: str) -> Grounds:
        """The rule of contradiction on one model's library. Raises UnknownName for a model without one."""
        return Grounds.of(self.library(model).data, self.told(model).label)

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
            found: dict[str, list[float]] = {}
            for platform in members:
                pairs = Comparisons.of(data.only([ids.index(platform)]), top_k)
                samples = draw(pool, min(n, len(pool)), OWN_SAMPLES, np.random.default_rng(0))
                (scores,) = self_scores(self.verifier, [self_rows(pairs, 0, pairs.data.present[0], samples, pool)])
                found |= {f"{platform} {setting}": some for setting, some in scores.items()}
            own[size] = found

    def _own_of(self, model: str, k: int) -> F32:
        if (model, k) not in self._own:
            self._own[model, k] = own_distances(self.library(model).data, k)[-1]
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
FEWEST = 8 * BLOCKS  # answers that a number format is told from
NO_GROUND = (
    "but nothing else fits either: another batch class or kernel plan of it may answer so, a platform that is not "
    "known here, or other weights"
)


@dataclass(frozen=True, slots=True)
class Beside:
    """An observation beside C platforms. pairs (C, F): features, answer by answer beside the nearest setting; scores
    (C,): natural log-odds of the same platform; fits (C,): `Grounds.fits`; distance (C, S): mean log10, by setting.
    """

    pairs: F32
    scores: F32
    fits: npt.NDArray[np.bool_]
    distance: F32


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
) -> Verdict:
    """Verdict for one observation at the replay level: scores (F,) of what is told apart.

    The set at 1−α holds every class whose own p-value exceeds α (conformal, so it holds the truth with 1−α whatever
    the detector); "unknown" stands in it when no class does.
    """
    post = calibration.posterior(scores)
    p = calibration.p_value(scores, probes, top_k, [f"{model}/{name}" for name in told.names])
    inside = [n for n, value in zip(told.names, p, strict=True) if value > alpha]
    best = int(np.argmax(scores))
    known = bool(inside) and int(np.argmax(post)) < told.count
    return Verdict(
        outcome=("identified" if len(inside) == 1 else "inconclusive") if known else UNKNOWN,
        answer=told.names[best] if known else UNKNOWN,
        members=list(told.members[best]) if known else [],
        posterior={**dict(zip(told.names, map(float, post[:-1]), strict=True)), UNKNOWN: float(post[-1])},
        set_at=inside or [UNKNOWN],
        p_values=dict(zip(told.names, map(float, p), strict=True)),
        alpha=alpha,
        level="replay",
        probes=probes,
        top_k=top_k,
        model=model,
    )
