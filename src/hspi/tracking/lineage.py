"""What DVC knows about the data: hashes for runs and registry, read from dvc.lock and the .dvc files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from hspi.errors import DataError


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


def _lock(root: Path) -> dict[str, Any]:
    path = root / "dvc.lock"
    return yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
