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
PLATFORMS = ["torch-fp32", "torch-bf16", "ort-fp32", "openvino-fp32"]  # quick ones of three engines
MODELS, TRIALS = 2, 2
REMOTE = "data/remote"  # large, and only read: the copy reads this tree's


def reduce(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters with a few platforms, of this machine and of what ships, two models and a short search."""
    demo = {"collect": [*PLATFORMS], "use": [*PLATFORMS]}
    tuning = {**params["tuning"], "trials": TRIALS}
    return {**params, "models": params["models"][:MODELS], "use": [*PLATFORMS], "demo": demo, "tuning": tuning}


def copy_tree(dest: Path) -> Path:
    """What git would clone, uncommitted edits included, but for the remote's files. Returns `dest`."""
    shutil.rmtree(dest, ignore_errors=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, dest / name
        if source.is_file() and not name.startswith(f"{REMOTE}/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return dest


def committed_datasets(dest: Path) -> None:
    """Datasets as git knows them: what was collected since stands in no remote yet."""
    for path in dest.glob("data/signatures/*.dvc"):
        show = ["git", "show", f"HEAD:{path.relative_to(dest)}"]
        shown = subprocess.run(show, cwd=ROOT, capture_output=True, check=False)
        path.write_bytes(shown.stdout) if shown.returncode == 0 else path.unlink()


def make_smoke(dest: Path) -> Path:
    """A small copy of the tree at `dest`, committed, ready for `dvc repro`. Returns `dest`."""
    path = copy_tree(dest) / "params.yaml"
    committed_datasets(dest)
    small = reduce(yaml.safe_load(path.read_text("utf-8")))
    path.write_text(yaml.safe_dump(small, sort_keys=False, default_flow_style=None, width=1000), "utf-8")
    (dest / ".dvc" / "config.local").write_text(f"['remote \"shipped\"']\n    url = {ROOT / REMOTE}\n", "utf-8")
    git = ["git", "-c", "user.name=smoke", "-c", "user.email=smoke@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "smoke"]):
        subprocess.run([*git, *arguments], cwd=dest, check=True)
    return dest


if __name__ == "__main__":
    print(make_smoke(Path(sys.argv[1]).resolve()))
