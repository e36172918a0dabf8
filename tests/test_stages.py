"""What a stage of dvc.yaml depends on is what it imports: else a stale detector would count as current."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import yaml

from test_imports import MODULES, PACKAGE, imported

ROOT = PACKAGE.parent.parent
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Rooms that decide no byte of what a stage makes, or that DVC follows by other means.
NO_DEPENDENCY = {
    "__init__": "a docstring and a version",
    "errors": "what is said when there is no result",
    "quiet": "other tools' manners",
    "files": "how a file is written, not what",
    "params": "dvc.yaml names the parameters themselves",
    "cli": "parses and calls",
}
# Where a run is logged changes nothing that later stages read but its own name; `register` is its stage.
RECORDERS = {"tracking": ["tune", "train"]}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def known(dotted: str) -> list[str]:
    """The modules of ours that an import runs: the longest that exists, and the packages around it."""
    parts = dotted.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return [name for name in names if name in MODULES] if parts[0] == "hspi" else []


def used_by(stage: str) -> set[str]:
    """Every module that the stage's function can run, its own late imports included."""
    tree = ast.parse(MODULES["hspi.stages"].read_text("utf-8"))
    functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
    at_the_top = {
        (a.asname or a.name): f"{n.module}.{a.name}"
        for n in tree.body
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("hspi")
        for a in n.names
    }
    todo, seen, found = [stage], set(), set()
    while todo:
        name = todo.pop()
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.ImportFrom):
                found |= {m for a in node.names for m in known(f"{node.module}.{a.name}")}
            elif isinstance(node, ast.Name) and node.id in at_the_top:
                found |= set(known(at_the_top[node.id]))
            elif isinstance(node, ast.Name) and node.id in functions and node.id not in seen:
                todo.append(node.id)
    recorders = {room for room, stages in RECORDERS.items() if stage in stages}
    reached: set[str] = set()
    open_ = {m for m in found if room_of(m) not in recorders}
    while open_:
        reached |= open_
        open_ = {n for m in open_ for n in imported(MODULES[m])} - reached
    return {m for m in reached if room_of(m) not in NO_DEPENDENCY}


def dependencies(stage: str) -> list[str]:
    return [d for d in STAGES[stage]["deps"] if d.startswith("src/")]


def place(module: str) -> str:
    """The room of a module as dvc.yaml names it."""
    room = PACKAGE / room_of(module)
    return str((room if room.is_dir() else room.with_suffix(".py")).relative_to(ROOT))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_room_that_it_runs_and_on_no_other(stage: str) -> None:
    data = {d for d in dependencies(stage) if d == "src/hspi/data"}
    wanted = {place(m) for m in used_by(stage)} - {"src/hspi/stages.py"}
    assert set(dependencies(stage)) - data == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_rooms_whole(stage: str) -> None:
    assert all(d.count("/") == 2 for d in dependencies(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_every_parameter_that_it_reads_and_no_other(stage: str) -> None:
    tree = ast.parse(MODULES["hspi.stages"].read_text("utf-8"))
    (function,) = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == stage]
    of_p = [n for n in ast.walk(function) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "p"]
    assert {n.attr for n in of_p} == set(STAGES[stage].get("params", []))


def test_no_stage_collects() -> None:
    """What a machine answers has no place in a graph whose outputs are the same wherever they are made."""
    for stage in STAGES:
        assert "hspi.signatures.collect" not in used_by(stage)
        assert not [o for o in made_by(stage) if o.startswith("data/signatures")]


def made_by(stage: str) -> dict[str, dict[str, Any]]:
    """What a stage makes, each with what dvc.yaml says of it."""
    entries = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    return {path: said for e in entries for path, said in (e if isinstance(e, dict) else {e: {}}).items()}


def test_what_is_made_again_on_each_machine_stays_off_the_remote() -> None:
    """Else `dvc pull` in a fresh clone would ask the remote for what git does not hold, and fail."""
    outs = {path: said for stage in STAGES for path, said in made_by(stage).items()}
    local = {path for path, said in outs.items() if said.get("cache") is False}
    assert {path for path in outs if path.startswith(("data/", "models/"))} <= local
    assert {path for path in outs if path.startswith("reports/")} - local >= {"reports/metrics.json", "reports/tables"}


def test_a_dependency_that_is_missing_would_be_found() -> None:
    """The fault that this file is for: tuning and training ran what stood in two rooms that dvc.yaml did not name."""
    for stage in ("tune", "train"):
        used = used_by(stage)
        assert {"hspi.detectors.number_format", "hspi.platforms.record", "hspi.splits"} <= used
        assert "hspi.evaluation.replay" not in used and not [m for m in used if room_of(m) == "tracking"]
