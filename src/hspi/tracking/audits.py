"""Audits as runs, in an experiment of their own: single ones, and those that make the history of an endpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hspi.files import read_json
from hspi.history import FAILED, Entry
from hspi.tracking.runs import log_batches, new_run
from hspi.tracking.store import AUDITS, experiment_id, open_store, own_is_open

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVIDENCE = ("verdict.json", "plan.json", "facts.json", "manifest.json", "answers.jsonl", "report.html")
NUMBERS = ("claim_p_value", "requests", "unusable", "prompt_tokens", "output_tokens", "cost")
_MOST = 50_000  # runs that MLflow returns in one call
_AT_ONCE = 8


def log_audit(folder: str | Path, *, root: str | Path = ".") -> str:
    """A sealed audit as a run: its settings, what it used and concluded, and the readable part of its evidence.

    Logged once for each manifest. Returns the run's id.
    """
    folder = Path(folder).resolve()
    mark = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    settings, verdict = read_json(folder / "settings.json"), read_json(folder / "verdict.json")
    with open_store(root) as client:
        experiment = experiment_id(client, AUDITS)
        known = client.search_runs([experiment], f"tags.`hspi.audit` = '{mark}'")
        if known:
            return str(known[0].info.run_id)
        tags = {"hspi.audit": mark, "hspi.outcome": verdict["outcome"], "hspi.answer": verdict["answer"]}
        tags |= {"hspi.endpoint": settings["base_url"], "mlflow.runName": _name(settings, verdict)}
        run_id = new_run(client, "audit", tags, experiment=experiment)
        log_batches(client, run_id, metrics={n: verdict[n] for n in NUMBERS}, params=settings)
        _log_evidence(client, run_id, folder)
        client.set_terminated(run_id)
    return str(run_id)


def log_check(
    key: str, about: Mapping[str, str], entry: Entry, folder: str | Path | None, *, root: str | Path = "."
) -> str:
    """An audit into the history `key`, in the place of an earlier record of it. Returns the run's id.

    about: endpoint, served and weights, as tags. folder: the audit's, whose evidence is logged if it was sealed.
    """
    folder = Path(folder).resolve() if folder else None
    sealed = folder is not None and (folder / "manifest.json").exists()
    with open_store(root) as client:
        run_id = _run_of(client, key, entry) or _new_check(client, key, entry)
        for name, value in {**_tags(key, entry), **{f"hspi.{k}": v for k, v in about.items()}}.items():
            client.set_tag(run_id, name, value)
        numbers = {n: getattr(entry, n) for n in NUMBERS} | {"alert": float(entry.alert)}
        log_batches(
            client, run_id, metrics=numbers, params=read_json(folder / "settings.json") if folder and sealed else None
        )
        if folder and sealed:
            _log_evidence(client, run_id, folder)
        client.log_dict(run_id, entry.to_dict(), "entry.json")  # last: what has none does not count
        client.set_terminated(run_id, "FAILED" if entry.outcome == FAILED else "FINISHED")
    return run_id


def read_history(key: str | None = None, *, root: str | Path = ".", **about: str) -> list[Entry]:
    """The audits of one history, or of all whose tags say so (`endpoint=…, served=…`), the oldest first."""
    where = "tags.`hspi.stage` = 'monitor'" + (f" AND tags.`hspi.history` = '{key}'" if key else "")
    with open_store(root) as client:
        runs = client.search_runs([experiment_id(client, AUDITS)], where, max_results=_MOST)
        mine = [run for run in runs if all(run.data.tags.get(f"hspi.{k}") == v for k, v in about.items())]
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # of a server each is a request
            found = [entry for entry in pool.map(_entry_of, mine) if entry]
    return sorted(found, key=lambda entry: entry.time)


def histories(*, root: str | Path = ".") -> dict[str, dict[str, str]]:
    """What each history is of: key → endpoint, served, weights."""
    with open_store(root) as client:
        runs = client.search_runs([experiment_id(client, AUDITS)], "tags.`hspi.stage` = 'monitor'", max_results=_MOST)
    tags = [run.data.tags for run in reversed(runs)]
    return {t["hspi.history"]: {k: t.get(f"hspi.{k}", "") for k in ("endpoint", "served", "weights")} for t in tags}


def attach(run_id: str, files: Sequence[str | Path], *, root: str | Path = ".") -> None:
    """Put files beside a run's evidence."""
    paths = [Path(f).resolve() for f in files]
    with open_store(root) as client:
        for path in paths:
            client.log_artifact(run_id, str(path))


def _tags(key: str, entry: Entry) -> dict[str, str]:
    name = f"{entry.answer or entry.outcome}{' ALERT' if entry.alert else ''}"
    return {
        "mlflow.runName": f"{entry.time[:16].replace('T', ' ')} {name}",
        "mlflow.note.content": entry.news or entry.why,
        "hspi.history": key,
        "hspi.folder": entry.folder,
        "hspi.outcome": entry.outcome,
        "hspi.answer": entry.answer,
        "hspi.before": entry.before,
        "hspi.alert": str(entry.alert).lower(),
        "hspi.webhook": entry.notified,
    }


def _new_check(client: MlflowClient, key: str, entry: Entry) -> str:
    started = int(datetime.fromisoformat(entry.time).timestamp() * 1000)
    return new_run(client, "monitor", _tags(key, entry), experiment=experiment_id(client, AUDITS), started=started)


def _run_of(client: MlflowClient, key: str, entry: Entry) -> str | None:
    mine = f"tags.`hspi.history` = '{key}' AND tags.`hspi.folder` = '{entry.folder}'"
    known = client.search_runs([experiment_id(client, AUDITS)], mine)
    return str(known[0].info.run_id) if known else None


def _entry_of(run: Run) -> Entry | None:
    if own_is_open():  # relative to the store's root, where `open_store` stands
        path = Path(run.info.artifact_uri) / "entry.json"
        return Entry.from_dict(read_json(path)) if path.exists() else None
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Entry.from_dict(mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/entry.json"))
    except MlflowException:
        return None


def _log_evidence(client: MlflowClient, run_id: str, folder: Path) -> None:
    for name in EVIDENCE:
        if (folder / name).exists():
            client.log_artifact(run_id, str(folder / name))


def _name(settings: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    return f"{settings['served']}: {verdict['outcome']}, {verdict['answer']}"
