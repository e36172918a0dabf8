"""README's tree and CONTRIBUTING's table of rooms, held against the tree that is there."""

from __future__ import annotations

import re

from test_readme import PACKAGE, ROOT

FILES = [f.relative_to(PACKAGE) for f in PACKAGE.rglob("*") if f.is_file()]
ROOMS = {f.parts[0] for f in FILES if "__pycache__" not in f.parts} - {"__init__.py", "__main__.py"}


def tree() -> list[str]:
    """Every path of README's tree, from the root. A line is names, two spaces or more, what they hold; what is indented
    stands in the folder above it."""
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```text\n(.*?)```", text[text.index("## The map") :], re.S)
    found, above = [], ""
    for line in block.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        inside = line.startswith(" ")
        above = above if inside else names[0]
        found += [above + name if inside else name for name in names]
    return found


def rows() -> list[list[str]]:
    """The rooms in each row of CONTRIBUTING's table: a folder ends in a slash, a module has no ending."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    lines = text[text.index("| room |") :].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in lines]


def made(path: str) -> bool:
    """Whether git ignores it, because a run makes it."""
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    return any(re.fullmatch(rf"/{path.rstrip('/')}(/\*)?", line) for line in ignored)


def test_the_readme_shows_what_is_there() -> None:
    paths = tree()
    assert len(paths) == len(set(paths))
    for path in paths:
        there = (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()
        assert there or made(path), path


def test_the_readme_shows_every_room() -> None:
    shown = {path.removeprefix("src/hspi/").rstrip("/") for path in tree() if path.startswith("src/hspi/")}
    assert shown - {""} == ROOMS


def test_contributing_lists_every_room_once_and_no_other() -> None:
    rooms = [name for row in rows() for name in row]
    assert len(rooms) == len(set(rooms))
    assert {name.rstrip("/") if name.endswith("/") else f"{name}.py" for name in rooms} == ROOMS
