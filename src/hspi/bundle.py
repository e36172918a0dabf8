"""A trained detector with all that it needs to judge: trees, calibration, and the library of candidates' signatures.

A folder of UBJ, JSON and safetensors files, nothing else. Adding a platform's signatures to the library needs no
retraining.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hspi.detectors.calibration import Calibration
from hspi.detectors.classifiers import Boosted
from hspi.detectors.families import Families
from hspi.detectors.training import OWN_SAMPLES
from hspi.detectors.verifier import Comparisons, class_scores, self_scores
from hspi.errors import DataError, UnknownName
from hspi.evidence.aligned import Aligned, place
from hspi.evidence.equivalence import Classes
from hspi.evidence.explained import explained_statistics, family_features
from hspi.evidence.replay import F32, candidate_features, pair_features, pair_statistics, self_features
from hspi.files import write_json, write_text
from hspi.platforms.record import Platform
from hspi.platforms.virtual_catalogue import ENGINE
from hspi.reference.logits import SLOTS
from hspi.signatures.schema import Signature
from hspi.splits import draw
from hspi.verdict import UNKNOWN, Verdict, decide

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Observation:
    """What somebody answered: one row for each probe. ids int32 and logprobs float32 (n, k), most likely first.

    weights_hash and probe_hashes (by set) say with which model and to which probes, where that is known.
    """

    model: str
    probes: list[tuple[str, int]]
    ids: npt.NDArray[np.int32]
    logprobs: F32
    weights_hash: str = ""
    probe_hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, signature: Signature, top_k: int) -> Observation:
        last = signature.last_position()
        probes = [(signature.header.probe_set, int(i)) for i in last.probe_id]
        h = signature.header
        k = min(top_k, h.top_k, SLOTS)
        answers = last.topk_ids[:, :k], last.topk_logprobs[:, :k]
        return cls(h.model, probes, *answers, h.weights_hash, {h.probe_set: h.probe_hash})

    def take(self, rows: Sequence[int]) -> Observation:
        at = list(rows)
        return replace(self, probes=[self.probes[i] for i in at], ids=self.ids[at], logprobs=self.logprobs[at])


@dataclass(slots=True)
class Bundle:
    """verifier: pairs; family: number format from residuals; library and classes: by model."""

    verifier: Boosted
    family: Boosted
    calibration: Calibration
    library: dict[str, Aligned]
    classes: dict[str, Classes]
    _own: dict[tuple[str, int], F32] = field(default_factory=dict)

    # ------------------------------------------------------------ judging

    def judge(self, seen: Observation, *, alpha: float = 0.01, claim: str | None = None) -> Verdict:
        """The verdict on one observation at the replay level. Raises UnknownName for a model without a library."""
        classes, families = self._classes(seen.model), self.families(seen.model)
        scores = families.best(class_scores(self.scores(seen)[None], classes))
        self._calibrate_joined(seen.model, len(seen.probes), seen.ids.shape[1])
        found = decide(
            scores.score[0],
            list(families.names),
            [list(m) for m in families.members],
            self.calibration,
            probes=len(seen.probes),
            top_k=seen.ids.shape[1],
            model=seen.model,
            alpha=alpha,
            claim=claim,
        )
        found = replace(found, any_plan=self.any_plan(seen.model, claim))
        if found.answer == UNKNOWN:
            return found
        best = int(scores.best[0, families.names.index(found.answer)])
        return replace(found, nearest=classes.name(best), plan=families.plans[best])

    def any_plan(self, model: str, claim: str | None) -> bool:
        """Whether the claim is a virtual GPU's, of which no library holds every kernel plan."""
        return any(p.id == claim and p.engine == ENGINE for p in self._platforms(model))

    def families(self, model: str) -> Families:
        """What verdicts on this model tell apart."""
        return Families.of(self._classes(model), self._platforms(model))

    def _platforms(self, model: str) -> list[Platform]:
        return self.library[model].platforms

    def scores(self, seen: Observation) -> F32:
        """Log-odds that each platform of the library is the observed one: (C,)."""
        data, k = self.library[seen.model], seen.ids.shape[1]
        at = self._rows(data, seen)
        logprobs, rank = place(data.slots[at], seen.ids, seen.logprobs)
        c, s = data.present.shape
        shape = (c * s, len(at), data.slots.shape[1])
        found = pair_statistics(
            logprobs,
            rank,
            data.logprobs[:, :, at].reshape(shape),
            data.rank[:, :, at].reshape(shape),
            data.reference[at],
            k,
        )
        pairs = pair_features(found.mean(axis=1).reshape(c, s, -1), k)
        features = candidate_features(pairs, data.present, self._own_of(seen.model, k))
        tail = np.broadcast_to(np.array([np.log2(len(at)), k], np.float32), (c, 2))
        return self.verifier.margin(np.concatenate([features, tail], axis=1)).astype(np.float32)

    def number_format(self, seen: Observation) -> dict[str, float]:
        """Posterior of the number-format family from residuals alone: {family: probability}."""
        data = self.library[seen.model]
        at = self._rows(data, seen)
        logprobs, rank = place(data.slots[at], seen.ids, seen.logprobs)
        one = data.on_probes(np.asarray(at))
        one = one.with_observation(logprobs, rank, seen.logprobs)
        x = family_features(explained_statistics(one, 0, 0, seen.ids.shape[1]).mean(axis=0, keepdims=True))
        return dict(zip(self.family.classes_.tolist(), self.family.predict_proba(x)[0].tolist(), strict=True))

    def _classes(self, model: str) -> Classes:
        if model not in self.classes:
            raise UnknownName("model with a library of signatures", model, self.classes)
        return self.classes[model]

    def _rows(self, data: Aligned, seen: Observation) -> list[int]:
        if not seen.probes:
            raise DataError("an observation must hold at least one probe, but it holds none")
        if seen.weights_hash and data.weights_hash and seen.weights_hash != data.weights_hash:
            raise DataError(
                f"an observation of {seen.model!r} must come of the library's weights, but its weights differ"
            )
        for name, known in data.probe_hashes.items():
            if seen.probe_hashes.get(name, known) != known:
                raise DataError(f"an observation must answer the library's {name!r} probes, but it answers others")
        index = {p: i for i, p in enumerate(data.probes)}
        try:
            return [index[p] for p in seen.probes]
        except KeyError as error:
            raise DataError(f"probes must be in the library of {seen.model!r}, but {error.args[0]} is not") from error

    def _calibrate_joined(self, model: str, probes: int, k: int) -> None:
        """Levels of platforms that joined after training: their own signatures, setting against setting, give them."""
        families, size = self.families(model), self.calibration.size(probes, k)
        n, top_k = (int(v) for v in size.split("x"))
        data = self.library[model]
        ids, pool = data.platform_ids(), np.arange(len(data.probes))
        for name, members in zip(families.names, families.members, strict=True):
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
            self._own[model, k] = own_distances(self.library[model], k)
        return self._own[model, k]

    # ------------------------------------------------------------ a table in, a table out

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """One verdict for each `sample`.

        Columns in: sample, model, probe_set, probe_id, topk_ids, topk_logprobs (lists). Columns out: sample,
        platform_class ("unknown" where nothing fits), probability, members, number_format.
        """
        import pandas as pd

        rows = []
        for sample, part in frame.groupby("sample", sort=True):
            seen = Observation(
                str(part["model"].iloc[0]),
                [(str(s), int(i)) for s, i in zip(part["probe_set"], part["probe_id"], strict=True)],
                np.stack([np.asarray(v, np.int32) for v in part["topk_ids"]]),
                np.stack([np.asarray(v, np.float32) for v in part["topk_logprobs"]]),
            )
            verdict = self.judge(seen)
            formats = self.number_format(seen)
            rows.append(
                {
                    "sample": sample,
                    "platform_class": verdict.answer,
                    "probability": verdict.posterior[verdict.answer],
                    "members": " ".join(verdict.members),
                    "number_format": max(formats, key=lambda f: formats[f]),
                }
            )
        return pd.DataFrame(rows)

    def example(self, model: str, probes: int = 8, top_k: int = 20) -> pd.DataFrame:
        """A real observation out of the library, as `predict` wants it."""
        import pandas as pd

        data = self.library[model]
        rows = []
        for i in range(probes):
            order = np.argsort(data.rank[0, 0, i], kind="stable")[:top_k]
            rows.append(
                {
                    "sample": 0,
                    "model": model,
                    "probe_set": data.probes[i][0],
                    "probe_id": data.probes[i][1],
                    "topk_ids": data.slots[i][order].tolist(),
                    "topk_logprobs": data.logprobs[0, 0, i][order].astype(float).tolist(),
                }
            )
        return pd.DataFrame(rows)

    # ------------------------------------------------------------ files

    def save(self, folder: str | Path) -> None:
        """Write the whole folder under a temporary name, then put it in the place of an older detector.

        Raises DataError if something else stands there.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / "classes.json").exists():
            raise DataError(f"{folder} must be empty or hold a detector, but it holds something else")
        fresh = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self.verifier.save(fresh / "verifier")
        self.family.save(fresh / "family")
        write_text(fresh / "calibration.json", self.calibration.to_json())
        classes = [c.to_dict() for c in self.classes.values()]
        write_json(fresh / "classes.json", classes, indent=None, sort_keys=False, end="")
        for model, data in self.library.items():
            data.save(fresh / "library" / f"{Path(model).name}.safetensors")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Raises DataError if the folder is not one that `save` wrote."""
        folder = Path(folder)
        try:
            rows: list[Mapping[str, Any]] = json.loads((folder / "classes.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} must hold a detector, but: {error}; run `hspi train`") from error
        classes = [Classes.from_dict(dict(r)) for r in rows]
        return cls(
            Boosted.load(folder / "verifier"),
            Boosted.load(folder / "family"),
            Calibration.read(folder / "calibration.json"),
            {c.model: Aligned.load(folder / "library" / f"{Path(c.model).name}.safetensors") for c in classes},
            {c.model: c for c in classes},
        )


def own_distances(data: Aligned, k: int) -> F32:
    """How far each platform is from itself across its settings, on every probe of the library: (C, 4)."""
    c, s = data.present.shape
    statistics = [
        pair_statistics(data.logprobs[i, a], data.rank[i, a], data.logprobs[i], data.rank[i], data.reference, k)
        for i in range(c)
        for a in range(s)
    ]
    stacked = np.stack(statistics)
    return self_features(stacked.reshape(c, s, *stacked.shape[1:]), data.present, k)
