"""Where a run comes from: what DVC knows about its data, and what git knows about its code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hspi.errors import DataError

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

SIGNATURES = Path("data/signatures")  # one DVC dataset for each hardware
UNVERSIONED = "unversioned"  # collected here, and not yet given to DVC
_LONGEST_DIGEST = 36  # that MLflow takes: an md5 with `.dir`


def dvc_md5s(root: str | Path = ".") -> dict[str, str]:
    """Path → md5 of everything that dvc.lock and the .dvc files know; stages that ran before are in it already."""
    found: dict[str, str] = {}
    for stage in _lock(Path(root)).get("stages", {}).values():
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            found[entry["path"]] = entry.get("md5", "")
    for path in sorted(Path(root).glob("data/**/*.dvc")):
        for entry in yaml.safe_load(path.read_text("utf-8")).get("outs", []):
            found[str((path.parent / entry["path"]).relative_to(root))] = entry.get("md5", "")
    return {path: md5 for path, md5 in found.items() if md5}


def evaluation_set_hash(root: str | Path = ".") -> str:
    """What the evaluation was made on: signatures, references and the parameters of featurizing and evaluating.

    Raises DataError if dvc.lock does not know those stages.
    """
    stages = _lock(Path(root)).get("stages", {})
    if not {"featurize", "evaluate"} <= set(stages):
        raise DataError(
            "dvc.lock must know the stages featurize and evaluate, but it does not: run  dvc repro evaluate"
        )
    data = {d["path"]: d.get("md5") for d in stages["featurize"]["deps"] if d["path"].startswith("data/")}
    facts = [data, stages["featurize"].get("params", {}), stages["evaluate"].get("params", {})]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- tags


def code_tags(root: str | Path = ".") -> dict[str, str]:
    """The commit and branch of the checkout and whether tracked files differ from it, or nothing outside of git.

    dvc.lock does not count as a difference: `dvc repro` writes it, and its hash is a tag of its own.
    """
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    tags = {"mlflow.source.git.commit": commit, "hspi.git.dirty": str(bool(changed)).lower()}
    branch = _git(root, "branch", "--show-current")
    return tags | ({"mlflow.source.git.branch": branch} if branch else {})


def lock_tags(root: str | Path = ".", stage: str | None = None) -> dict[str, str]:
    """SHA-256 of dvc.lock as it is now; or, of what it says of one stage (as sorted JSON), which stays as it is when
    later stages run. Nothing where there is none."""
    path = Path(root) / "dvc.lock"
    if stage is None:
        return {"dvc.lock": hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else {}
    facts = _lock(Path(root)).get("stages", {}).get(stage)
    text = json.dumps(facts, sort_keys=True)
    return {f"dvc.lock.{stage}": hashlib.sha256(text.encode()).hexdigest()} if facts else {}


def _git(root: str | Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except OSError:  # no git here
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# ---------------------------------------------------------------- datasets as inputs of a run


def hardware_of(platforms: Iterable[str]) -> list[str]:
    """The machines of full ids, `<hardware>/<software>`, each once."""
    return sorted({id.rpartition("/")[0] for id in platforms} - {""})


def dataset_inputs(platforms: Iterable[str], root: str | Path = ".") -> list[DatasetInput]:
    """The signatures of each machine that the platforms (full ids) stand on, as inputs of a training.

    name: the hardware; digest: the md5 of its .dvc file; source: that file; profile: its counts and description.
    """
    return [_input(name, *_facts(Path(root), name), "training") for name in hardware_of(platforms)]


def evaluation_input(evaluation_set: str, platforms: Iterable[str], root: str | Path = ".") -> DatasetInput:
    """All machines' signatures with the split that they were evaluated under, as one input: MLflow keeps one context
    for each input of a run, and what trained the detector that ships is the same files."""
    profile = {name: _facts(Path(root), name)[0] for name in hardware_of(platforms)}
    return _input("evaluation set", evaluation_set[:_LONGEST_DIGEST], "dvc.lock", profile, "evaluation")


def _facts(root: Path, hardware: str) -> tuple[str, str, dict[str, Any]]:
    """Digest, source and profile of a machine's dataset."""
    path = SIGNATURES / f"{hardware}.dvc"
    if not (root / path).exists():
        return UNVERSIONED, str(path.with_suffix("")), {}
    written = yaml.safe_load((root / path).read_text("utf-8"))
    out = written["outs"][0]
    profile = {"files": out.get("nfiles"), "bytes": out.get("size")}
    return out["md5"], str(path), profile | {k: written[k] for k in ("desc", "meta") if k in written}


def _input(name: str, digest: str, source: str, profile: dict[str, Any], context: str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name, digest, "local", json.dumps({"uri": source}), profile=json.dumps(profile, default=str))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _lock(root: Path) -> dict[str, Any]:
    path = root / "dvc.lock"
    return yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
