"""Copies this tree to a folder and makes its params.yaml small, so that the whole pipeline runs there in minutes.

    python scripts/smoke.py DEST

Used by `make demo-smoke` and by the slow tests. The copy is a git repository of its own, as DVC wants one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = ("torch-fp32", "torch-bf16", "ort-fp32", "openvino-fp32")  # quick ones of three engines
MODELS, PROBES, TRIALS = 2, 64, 2


def reduce(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters with a few platforms and models, small probe sets and a short search."""
    small = dict(params)
    small["platforms"] = [name for name in params["platforms"] if name in PLATFORMS]
    small["models"] = params["models"][:MODELS]
    sets = {name: {**spec, "size": min(spec["size"], PROBES)} for name, spec in params["probes"]["sets"].items()}
    small["probes"] = {**params["probes"], "sets": sets}
    small["tuning"] = {**params["tuning"], "trials": TRIALS}
    return small


def copy_tree(dest: Path) -> Path:
    """What git would clone, uncommitted edits included. Returns `dest`."""
    shutil.rmtree(dest, ignore_errors=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, dest / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return dest


def make_smoke(dest: Path) -> Path:
    """A small copy of the tree at `dest`, committed, ready for `dvc repro`. Returns `dest`."""
    path = copy_tree(dest) / "params.yaml"
    path.write_text(yaml.safe_dump(reduce(yaml.safe_load(path.read_text("utf-8"))), sort_keys=False), "utf-8")
    git = ["git", "-c", "user.name=smoke", "-c", "user.email=smoke@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "smoke"]):
        subprocess.run([*git, *arguments], cwd=dest, check=True)
    return dest


if __name__ == "__main__":
    print(make_smoke(Path(sys.argv[1]).resolve()))
