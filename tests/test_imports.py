"""Reads the imports: data flows one way, and the tools stay in their rooms (docs: the layout in CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "hspi"
FLOORS = [  # from the ground up; a room imports what stands below it or beside it
    {"errors", "__init__", "quiet", "files"},
    {"numerics", "platforms", "probes", "client", "params", "zoo", "splits", "lineage", "zoo_training", "pairs"},
    {"signatures"},
    {"reference", "silicon"},
    {"evidence", "featurize"},
    {"detectors"},
    {"verdict", "tuning", "evaluation", "bundle", "history"},
    {"report", "audit", "tracking", "served_model", "serve", "webhook"},
    {"stages", "judging", "monitor"},
    {"cli", "__main__"},
]
TOOLS = {"mlflow", "dvc", "prefect", "click"}
MAY = {("tracking", "mlflow"), ("cli", "click"), ("tracking", "optuna"), ("tuning", "optuna")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every dotted module that a file imports at run time, late imports included."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here, so that this test can read them"
            names = [alias.name for alias in node.names]
            found += [f"hspi.{n}" for n in names] if node.module == "hspi" else [node.module or ""]
    return found


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_floor() -> None:
    known = set().union(*FLOORS)
    assert {room(f) for f in FILES} <= known, "say in FLOORS where the new room stands"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_upward(path: Path) -> None:
    rooms = set(map(room, FILES))
    mine = floor(room(path))
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "hspi" and len(parts) > 1 and parts[1] in rooms:
            assert floor(parts[1]) <= mine, f"{path} imports {module}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tools_stay_in_their_rooms(path: Path) -> None:
    used = {(room(path), module.split(".")[0]) for module in imports(path)}
    strangers = {pair for pair in used if pair[1] in {*TOOLS, "optuna"}} - MAY
    assert not strangers


def test_flows_call_verbs_and_stages_alone() -> None:
    """Flows may read parameters and reports; the science is behind DVC's stages."""
    allowed = {"errors", "quiet", "params", "pairs", "client", "audit"}
    for path in (PACKAGE.parent.parent / "flows").glob("*.py"):
        rooms = {m.split(".")[1] for m in imports(path) if m.startswith("hspi.")}
        assert rooms <= allowed, f"{path}: {rooms - allowed}"
