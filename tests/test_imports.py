"""Reads the imports: data flows one way, nothing runs in a circle, and the tools stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hspi"
TOOLS = {"mlflow", "dvc", "prefect", "click"}
MAY = {("tracking", "mlflow"), ("cli", "click"), ("tracking", "optuna"), ("detectors", "optuna")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def in_checking_of_types(tree: ast.Module) -> set[int]:
    """Nodes below `if TYPE_CHECKING:`, by id."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }


def imports(path: Path) -> list[str]:
    """Every dotted module that a file imports at run time, late imports included."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = in_checking_of_types(tree)
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


FILES = sorted(PACKAGE.rglob("*.py"))
FACES = {"__init__", "__main__"}  # the package's own: they import what they show


def module_of(path: Path) -> str:
    return ".".join(["hspi", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports at run time: the longest name of each import that is one."""
    found = set()
    for dotted in members(path):
        parts = dotted.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        found |= {name for name in names if name in MODULES and name != "hspi"} if parts[0] == "hspi" else set()
    return found


def members(path: Path) -> list[str]:
    """`from hspi.a import b` as hspi.a.b too, for b may be a module."""
    tree = ast.parse(path.read_text("utf-8"))
    unused = in_checking_of_types(tree)
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) not in unused]
    return [*imports(path), *(f"{n.module}.{a.name}" for n in nodes for a in n.names)]


def below(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each: one above the highest that it imports. Fails with the way round where there is a circle."""
    floors: dict[str, int] = {}

    def visit(name: str, way: tuple[str, ...]) -> int:
        assert name not in way, "a circle: " + " → ".join((*way[way.index(name) :], name))
        if name not in floors:
            floors[name] = max((visit(other, (*way, name)) + 1 for other in sorted(graph[name])), default=0)
        return floors[name]

    for name in sorted(graph):
        visit(name, ())
    return floors


def rooms() -> dict[str, set[str]]:
    """What each room imports: entries of src/hspi, folders whole."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if room(path) not in FACES:
            mine = graph.setdefault(room(path), set())
            mine |= {module.split(".")[1] for module in imported(path)} - {room(path)}
    return graph


def test_rooms_stand_on_floors() -> None:
    """A room imports what stands below it, never beside it or above: the order is read from the tree."""
    floors = below(rooms())
    way = ["platforms", "signatures", "evidence", "detectors", "audits", "monitor", "cli"]
    assert [floors[name] for name in way] == sorted({floors[name] for name in way}), "the way of the data"


def test_no_file_imports_itself_by_a_way_round() -> None:
    below({module_of(f): imported(f) - {module_of(f), *around(module_of(f))} for f in FILES if room(f) not in FACES})


def around(module: str) -> set[str]:
    """The packages that a module stands in: importing it runs them, and they may show it."""
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def test_a_circle_is_seen_and_named() -> None:
    with pytest.raises(AssertionError, match="a → c → a"):
        below({"a": {"b", "c"}, "b": set(), "c": {"a"}})


def test_contributing_lists_rooms_from_the_ground_up() -> None:
    from test_maps import rows

    height = {name.rstrip("/"): i for i, row in enumerate(rows()) for name in row}
    for name, others in rooms().items():
        for other in others:
            assert height[other] < height[name], f"{name} imports {other}, which CONTRIBUTING.md lists beside or above"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tools_stay_in_their_rooms(path: Path) -> None:
    used = {(room(path), module.split(".")[0]) for module in imports(path)}
    strangers = {pair for pair in used if pair[1] in {*TOOLS, "optuna"}} - MAY
    assert not strangers


def test_flows_call_verbs_and_stages_alone() -> None:
    """They read parameters and reports and call public functions; the science is behind DVC's stages, but for
    collecting, which is none.
    """
    allowed = {"errors", "quiet", "params", "evaluation.pairs", "audits.run", "monitor", "history", "tracking", "cli"}
    allowed |= {"signatures.side_by_side", "signatures.store"}
    for path in (ROOT / "flows").glob("*.py"):
        used = {m.removeprefix("hspi.") for m in imports(path) if m.startswith("hspi.")}
        strangers = {m for m in used if not any(f"{m}.".startswith(f"{a}.") for a in allowed)}
        assert not strangers, f"{path}: {strangers}"


@pytest.mark.parametrize("folder", ["benchmarks", "scripts"])
def test_what_stands_beside_the_package_imports(folder: str) -> None:
    """In a process of its own, for virtual_world.py adds kernel plans to hspi's."""
    names = sorted(path.stem for path in (ROOT / folder).glob("*.py"))
    code = "import importlib, sys; sys.path.insert(0, sys.argv[1]); [importlib.import_module(n) for n in sys.argv[2:]]"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / folder), *names], capture_output=True, text=True)
    assert names and done.returncode == 0, done.stderr
