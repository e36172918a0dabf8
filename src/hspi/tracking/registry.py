"""The registry: every evaluated detector is a version; the best on one evaluation set is the champion.

None is that misses an honesty target (`report.headlines`): a detector that contradicts true claims is worse than none,
however well it names classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hspi.errors import ConfigError, DataError
from hspi.files import write_json
from hspi.platforms.convert import cache_folder, made_once
from hspi.report.headlines import dishonest
from hspi.tracking.evaluation import log_evaluation, platform_rows, platforms_of
from hspi.tracking.lineage import evaluation_set_hash
from hspi.tracking.notes import description
from hspi.tracking.store import experiment_id, locked, open_store, own_is_open, store_exists, store_root
from hspi.tracking.training import RESTORED, log_training

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from hspi.detectors.detector import Detector

MODEL, CHAMPION = "hspi-detector", "champion"
PRIMARY = ("replay.probes.macro_accuracy", "replay.probes.macro_accuracy.1x20")  # the second decides a tie
_SET, _HONESTY, _DECISION = "hspi.evaluation_set", "hspi.honesty", "hspi.promotion"  # tags of a version
_HONEST, _ALREADY = "met", "it is the champion already"
_ABOUT = (
    "Names the platform that serves a language model. Use the version with the alias champion: none has it that "
    "contradicts true claims."
)

Rescore = Callable[[Path], Mapping[str, float]]
"""Detector folder → metrics on the present evaluation set, for a champion that was evaluated on another one and for
whoever challenges it. Raises DataError for a detector that this version cannot read."""


def publish(
    run_file: str | Path,
    detector_dir: str | Path,
    metrics_file: str | Path,
    tables_dir: str | Path,
    figures_dir: str | Path | None,
    registry_file: str | Path,
    *,
    evaluation_set: str | None = None,
    rescore: Rescore | None = None,
    root: str | Path = ".",
) -> dict[str, Any]:
    """Log the evaluation into the run of `run_file` and register its model; writes and returns what `register` does.

    `evaluation_set` defaults to `lineage.evaluation_set_hash(root)`. A run that this store does not know, because DVC
    restored the model from elsewhere, is made again from the detector. Raises DataError if a file is not as it must be.
    """
    run, metrics = _read_json(Path(run_file)), _read_json(Path(metrics_file))
    evaluation_set = evaluation_set or evaluation_set_hash(root)
    run = known_run(run, detector_dir, platforms_of(platform_rows(tables_dir)), root=root)
    log_evaluation(run["run_id"], metrics, tables_dir, figures_dir, evaluation_set=evaluation_set, root=root)
    result = register(run, metrics, evaluation_set, rescore=rescore, root=root)
    write_json(Path(registry_file), result)
    return result


def known_run(
    run: Mapping[str, str], detector_dir: str | Path, platforms: Sequence[str] = (), *, root: str | Path = "."
) -> dict[str, str]:
    """The run itself where the store knows it, or else one that is made from the detector, once. platforms: full ids
    that it was trained on."""
    from mlflow.exceptions import MlflowException

    with open_store(root) as client:
        try:
            client.get_run(run["run_id"])
            return dict(run)
        except MlflowException:
            found = client.search_runs([experiment_id(client)], f"tags.`{RESTORED}` = '{run['run_id']}'")
    if found:
        info = found[0].info
        return {"run_id": info.run_id, "experiment_id": info.experiment_id, **_model_of(found[0])}
    restored = {RESTORED: run["run_id"], "mlflow.runName": f"detector of run {run['run_id'][:8]}, restored"}
    return log_training(detector_dir, {}, {}, platforms=platforms, root=root, run_file=None, tags=restored)


def _model_of(run: Any) -> dict[str, str]:
    model_id = run.outputs.model_outputs[-1].model_id
    return {"model_id": model_id, "model_uri": f"models:/{model_id}"}


def register(
    run: Mapping[str, str],
    metrics: Mapping[str, float],
    evaluation_set: str,
    *,
    rescore: Rescore | None = None,
    root: str | Path = ".",
) -> dict[str, Any]:
    """A version of `hspi-detector` for the run's model, and `champion` if it beats the champion on the same set.

    A version that misses an honesty target is never champion, and no more if it was; a champion that misses one gives
    way to any that does not. Tags and description of the version say so. Called again for the same run it changes
    nothing. If the champion is of another evaluation set, `rescore` scores both detectors on this one, and a champion
    that cannot be read any more gives way; without `rescore` they cannot be compared and the champion stays.
    Returns name, version, evaluation_set, metrics, champion (its version, or None), promoted, reason, and honesty: a
    line for each such target that it misses. Raises DataError if a primary metric is missing.
    """
    score, misses = _primary(metrics), dishonest(metrics)
    with open_store(root) as client, locked(store_root(root)):
        mine = _version_of(client, run)
        champion = _champion(client)
        _tag(client, mine, {**dict(zip(PRIMARY, map(repr, score), strict=True)), _SET: evaluation_set})
        if misses:
            promoted, reason = False, f"an honesty target is missed: {'; '.join(misses)}"
        else:
            promoted, reason = _judge(client, mine, champion, score, evaluation_set, rescore)
        holder = _settled(client, mine, champion, promoted, bool(misses))
        is_champion = holder is not None and holder.version == mine.version
        _explain(client, mine, metrics, evaluation_set, misses, is_champion, reason)
    return {
        "name": MODEL,
        "version": int(mine.version),
        "run_id": run["run_id"],
        "evaluation_set": evaluation_set,
        "metrics": dict(zip(PRIMARY, score, strict=True)),
        "champion": int(holder.version) if holder else None,
        "promoted": is_champion,
        "reason": reason,
        "honesty": misses,
    }


def _settled(
    client: MlflowClient, mine: ModelVersion, champion: ModelVersion | None, promoted: bool, barred: bool
) -> ModelVersion | None:
    """Give or take the alias. Returns who has it."""
    if promoted:
        client.set_registered_model_alias(MODEL, CHAMPION, mine.version)
        return mine
    if barred and champion is not None and champion.version == mine.version:
        client.delete_registered_model_alias(MODEL, CHAMPION)
        return None
    return champion


def _explain(
    client: MlflowClient,
    mine: ModelVersion,
    metrics: Mapping[str, float],
    evaluation_set: str,
    misses: Sequence[str],
    is_champion: bool,
    reason: str,
) -> None:
    decision = f"{'Promoted' if is_champion else 'Not promoted'}: {reason}"
    if reason == _ALREADY:
        decision = mine.tags.get(_DECISION, decision)
    _tag(client, mine, {_HONESTY: f"missed: {'; '.join(misses)}" if misses else _HONEST, _DECISION: decision})
    note = f"{decision}.\n\n{description(metrics)}\n\nEvaluation set {evaluation_set[:12]}."
    client.update_model_version(MODEL, mine.version, description=note)


def _tag(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_model_version_tag(MODEL, version.version, name, value)


def _judge(
    client: MlflowClient,
    mine: ModelVersion,
    champion: ModelVersion | None,
    score: tuple[float, float],
    evaluation_set: str,
    rescore: Rescore | None,
) -> tuple[bool, str]:
    if champion is None:
        return True, "there was no champion"
    if champion.version == mine.version:
        return False, _ALREADY
    if champion.tags.get(_HONESTY, _HONEST) != _HONEST:
        return True, f"champion {champion.version} misses an honesty target"
    theirs = tuple(float(champion.tags[name]) for name in PRIMARY)
    if champion.tags[_SET] != evaluation_set:
        if rescore is None:
            return False, f"champion {champion.version} was evaluated on another set and cannot be compared"
        score = _primary(rescore(_detector_of(client, mine)))
        try:
            theirs = _primary(rescore(_detector_of(client, champion)))
        except DataError as error:
            return True, f"champion {champion.version} cannot be scored on this set: {error}"
    verb = "beats" if score > theirs else "does not beat"
    return score > theirs, f"{_read(score)} {verb} champion {champion.version}'s {_read(theirs)} on the same set"


def _read(score: Sequence[float]) -> str:
    """ "accuracy 0.9999 (32 × top-20), 0.9444 (1 × top-20)"."""
    return f"accuracy {score[0]:.6g} (32 × top-20), {score[1]:.6g} (1 × top-20)"


def _version_of(client: MlflowClient, run: Mapping[str, str]) -> ModelVersion:
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL, description=_ABOUT)
    same = client.search_model_versions(f"name = '{MODEL}' AND run_id = '{run['run_id']}'")
    return (
        same[0]
        if same
        else client.create_model_version(MODEL, run["model_uri"], run["run_id"], model_id=run["model_id"])
    )


def _champion(client: MlflowClient) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(MODEL, CHAMPION)
    except MlflowException:
        return None


def champion_path(root: str | Path = ".") -> Path:
    """The folder of the champion's detector: inside the store, or of a server's in the cache.

    Raises DataError if there is no champion; ConfigError if no version may be, because the newest misses an honesty
    target: whoever wants that one all the same must name it.
    """
    nothing = DataError(f"the registry must hold {MODEL}@{CHAMPION}, but it does not: run  dvc repro")
    if not store_exists(root):
        raise nothing
    with open_store(root) as client:
        version = _champion(client)
        if version is None:
            _refuse_barred(client)
            raise nothing
        return _detector_of(client, version)


def _refuse_barred(client: MlflowClient) -> None:
    newest = client.search_model_versions(f"name = '{MODEL}'", max_results=1, order_by=["version_number DESC"])
    if newest and newest[0].tags.get(_HONESTY, _HONEST) != _HONEST:
        why = f"version {newest[0].version} {newest[0].tags[_HONESTY]}"
        raise ConfigError(f"{MODEL} must have a champion, but {why}; to use a detector all the same, name its folder")


def champion(root: str | Path = ".") -> Detector:
    """The champion's detector, loaded. Raises as `champion_path` does."""
    from hspi.detectors.detector import Detector

    return Detector.load(champion_path(root))


def _detector_of(client: MlflowClient, version: ModelVersion) -> Path:
    """What another store holds is fetched once, and kept: a version never changes."""
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    uri = client.get_model_version_download_uri(MODEL, version.version)
    if own_is_open():
        folder = Path(download_artifacts(uri)).resolve()
    else:
        kept = cache_folder() / "detectors" / f"{version.run_id}-{version.version}"
        made_once(kept, lambda unfinished: download_artifacts(uri, dst_path=str(unfinished)))
        folder = next(kept.rglob("MLmodel")).resolve().parent  # MLflow's stores differ in how deep they put it
    return folder / Model.load(str(folder)).flavors["python_function"]["artifacts"]["bundle"]["path"]


def _primary(metrics: Mapping[str, float]) -> tuple[float, float]:
    try:
        return float(metrics[PRIMARY[0]]), float(metrics[PRIMARY[1]])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"metrics must hold {' and '.join(PRIMARY)}, but: {error!r}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be a JSON object, but: {error}") from error
