"""The one writer: whole or not at all, whatever ends it; and nothing writes around it."""

from __future__ import annotations

import ast
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hspi import files

PACKAGE = Path(files.__file__).parent


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---------------------------------------------------------------- bytes


def test_what_is_written_is_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "a.bin"
    assert files.write_bytes(path, b"\x00\r\n") == path and path.read_bytes() == b"\x00\r\n"
    assert files.write_text(tmp_path / "a.txt", "é\r\n").read_bytes() == "é\r\n".encode()
    assert names(path.parent) == ["a.bin"]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert stat.S_IMODE(files.write_array(tmp_path / "a", np.zeros(2)).stat().st_mode) == 0o644
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({}, '{\n "a": [\n  2,\n  0.1\n ],\n "b": "\\u00e9"\n}\n'),
        ({"indent": 2, "sort_keys": False}, '{\n  "b": "\\u00e9",\n  "a": [\n    2,\n    0.1\n  ]\n}\n'),
        ({"indent": None, "end": ""}, '{"a": [2, 0.1], "b": "\\u00e9"}'),
        ({"indent": None, "sort_keys": False, "end": ""}, '{"b": "\\u00e9", "a": [2, 0.1]}'),
    ],
)
def test_json_is_spelled_as_asked(how: dict[str, object], text: str, tmp_path: Path) -> None:
    data = {"b": "é", "a": [2, 0.1]}
    path = files.write_json(tmp_path / "a.json", data, **how)  # type: ignore[arg-type]
    assert path.read_bytes() == text.encode() and files.to_json(data, **how) == text  # type: ignore[arg-type]
    assert files.read_json(path) == data


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_an_array_comes_back_bit_for_bit_or_not_at_all(dtype: type, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (3, 4)).astype(dtype)[:, ::2]
    path = files.write_array(tmp_path / "a.safetensors", array)
    found = files.read_array(path, (3, 2), dtype)
    assert found is not None and found.tobytes() == array.tobytes() and found.dtype == dtype
    assert files.read_array(path, (2, 3), dtype) is None
    assert files.read_array(path, (3, 2), np.int16) is None
    assert files.read_array(tmp_path / "absent", (3, 2), dtype) is None
    path.write_bytes(path.read_bytes()[:-1])
    assert files.read_array(path, (3, 2), dtype) is None


def test_digest_and_version(tmp_path: Path) -> None:
    path = files.write_bytes(tmp_path / "a", b"abc")
    assert files.digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.version("numpy") == np.__version__ and files.version("no-such-distribution") == ""


# ---------------------------------------------------------------- what ends a writer


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a", "old")
    with pytest.raises(error), files.whole(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a"]
    with pytest.raises(error), files.whole(tmp_path / "b"):
        raise error
    assert names(tmp_path) == ["a"]


def test_what_cannot_be_renamed_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").is_dir()


def test_data_that_are_no_json_leave_what_was_there(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == [1] and names(tmp_path) == ["a.json"]


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path: Path) -> None:
    """So a file that DVC linked to its cache is never written through."""
    cached = files.write_text(tmp_path / "cached", "old")
    cached.chmod(0o444)
    (tmp_path / "a").symlink_to(cached)
    files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a").is_symlink()
    assert cached.read_text() == "old"


HALF = """
import sys, time
from hspi.files import whole
with whole(sys.argv[1]) as temporary, temporary.open("wb") as f:
    f.write(b"half")
    f.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_kill_leaves_the_old_content_and_the_next_day_nothing(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a[1]", "old")
    child = subprocess.Popen([sys.executable, "-c", HALF, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert path.read_text() == "old"
    (left,) = tmp_path.glob("*.tmp")
    files.write_text(path, "new")
    assert path.read_text() == "new" and left.exists(), "another writer's may be under way"
    beside = tmp_path / "a1.0123456789abcdef.tmp"
    beside.touch()
    for old in (left, beside):
        os.utime(old, (time.time() - files.ABANDONED - 60,) * 2)
    files.write_text(path, "newer")
    assert names(tmp_path) == ["a1.0123456789abcdef.tmp", "a[1]"], "another target's is another's to take away"


RENAMER = """
import os, sys, numpy as np
from pathlib import Path
from hspi import files
def announce(self, target):
    print("written", flush=True)
    sys.stdin.read()
Path.replace = announce
files.write_array(Path(sys.argv[1]), np.zeros((2, 2, 2)))
"""


def test_killed_before_the_rename_nothing_is_read(tmp_path: Path) -> None:
    target = tmp_path / "x.safetensors"
    child = subprocess.Popen(
        [sys.executable, "-c", RENAMER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not target.exists()
    assert files.read_array(target, (2, 2, 2), np.float64) is None
    files.write_array(target, np.ones((2, 2, 2)))
    assert (files.read_array(target, (2, 2, 2), np.float64) == 1).all()


WRITER = """
import sys
from hspi.files import write_bytes
for i in range(200):
    write_bytes(sys.argv[1], sys.argv[2].encode() * 50_000)
"""


def test_writers_at_once_never_mix(tmp_path: Path) -> None:
    path = files.write_bytes(tmp_path / "a", b"x" * 50_000)
    children = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "abc"]
    while any(child.poll() is None for child in children):
        content = path.read_bytes()
        assert len(content) == 50_000 and len(set(content)) == 1
    assert [child.returncode for child in children] == [0, 0, 0]
    assert names(tmp_path) == ["a"] and path.read_bytes()[:1] in b"abc"


def test_what_killed_writers_left_goes_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / "a.json.0123456789abcdef.tmp", tmp_path / "below" / "b.zip.fedcba9876543210.tmp"]
    kept = [tmp_path / "a.json", tmp_path / "mine.tmp", tmp_path / "below" / "a.0123.tmp"]
    for path in left + kept:
        files.write_text(path, "x")
    files.take_away_torn(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


# ---------------------------------------------------------------- nothing writes around it

# Journals grow; a server's log is no result.
AROUND = {("platforms/servers/launch.py", "log.open")}


def writes(path: Path) -> set[str]:
    """Calls that put bytes into a file, other than one that `whole` gave (by the name `temporary`)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        modes = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens = called.rpartition(".")[2] in ("open", "fdopen") and any(
            m[:1] in ("w", "x") and set(m) <= set("wxbt+") for m in modes
        )
        if opens or called.endswith((".write_text", ".write_bytes", "mkstemp", ".save_model")):
            found.add(called)
    return {c for c in found if not c.startswith("temporary.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_is_written_here(path: Path) -> None:
    where = str(path.relative_to(PACKAGE))
    assert {(where, call) for call in writes(path)} <= AROUND


def test_the_check_sees_a_writer(tmp_path: Path) -> None:
    write = ['p.write_text("a")', 'open("f", "w")', 'p.open("wb")', 'os.fdopen(h, "wb")']
    others = ["p.open()", 'open("words.txt")', 'temporary.open("w")', 'p.open("a")']
    (tmp_path / "a.py").write_text("\n".join([*write, *others]))
    assert writes(tmp_path / "a.py") == {"p.write_text", "open", "p.open", "os.fdopen"}


# ---------------------------------------------------------------- alone


def test_a_bare_server_can_import_it() -> None:
    """NumPy and the standard library until arrays are written."""
    code = "import sys, hspi.files; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "pyarrow", "pandas", "mlflow", "sklearn", "xgboost", "matplotlib", "pydantic"}
    assert not heavy & set(json.loads(done.stdout))
