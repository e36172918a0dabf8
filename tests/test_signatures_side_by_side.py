"""Several platforms at once, each in a process of its own: a stand-in for `hspi collect`, and once the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from conftest import script
from hspi.cli import main
from hspi.errors import ConfigError, PlatformError, UnknownName
from hspi.platforms import catalogue, machine
from hspi.signatures import side_by_side
from hspi.signatures.side_by_side import collect_side_by_side, hardware_of_here, runnable

PYTHON = sys.executable
# It writes down when it began and ended, and its words; `slow…` takes a second, `bad…` fails as hspi does.
STAND_IN = """#!{python}
import json, os, sys, time
words = sys.argv[1:]
platform = words[words.index("--platform") + 1]
diary = open({diary!r}, "a", buffering=1)
print("a library says hello")
print(json.dumps({{"probes": 3}}), flush=True)
began = time.monotonic()
time.sleep(1 if platform.startswith("slow") else 0.2)
print(json.dumps({{"probes": 4}}), flush=True)
diary.write(json.dumps([platform, began, time.monotonic(), words, os.getpid()]) + "\\n")
if platform.startswith("bad"):
    sys.exit("Warning: first\\nError: the engine is ill")
"""


@pytest.fixture
def diary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    diary, program = tmp_path / "diary", tmp_path / "stand-in"
    program.write_text(STAND_IN.format(python=sys.executable, diary=str(diary)))
    program.chmod(0o755)
    monkeypatch.setattr(side_by_side.sys, "executable", str(program))
    return diary


def read(diary: Path) -> dict[str, tuple[float, float, list[str]]]:
    return {p: (began, ended, words) for p, began, ended, words, _ in map(json.loads, diary.read_text().splitlines())}


def most_at_once(diary: Path) -> int:
    spans = [(began, ended) for began, ended, _ in read(diary).values()]
    return max(sum(a <= began < b for a, b in spans) for began, _ in spans)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_as_many_run_at_a_time_as_asked_and_all_are_counted(diary: Path, processes: int, tmp_path: Path) -> None:
    ticks, said = [], []
    names = ["slow-a", "slow-b", "slow-c", "d"]
    options = ["--model", "llama"]
    collect_side_by_side(names, options, out=tmp_path, tick=ticks.append, say=said.append, processes=processes)
    assert most_at_once(diary) == processes
    assert sum(ticks) == 7 * 4 and Counter(said) == Counter(f"{name} done" for name in names)
    words = read(diary)["d"][2]
    assert words[:3] == ["-m", "hspi", "collect"] and words[-2:] == options
    assert words[words.index("--jobs") + 1] == "1" and words[words.index("--out") + 1] == str(tmp_path)


def test_one_that_fails_stops_no_other_and_is_named_with_its_reason(diary: Path) -> None:
    said: list[str] = []
    with pytest.raises(PlatformError, match=r"^3 platforms must be collected, but bad-a failed: the engine is ill$"):
        collect_side_by_side(["bad-a", "b", "c"], say=said.append, processes=1)
    assert list(read(diary)) == ["bad-a", "b", "c"] and said == ["bad-a failed", "b done", "c done"]


def test_an_interrupt_begins_no_other_and_ends_what_runs(diary: Path, tmp_path: Path) -> None:
    """As Ctrl-C does, to the parent alone."""
    run = "from hspi.signatures import side_by_side as s\n"
    run += "s.sys.executable = {!r}; s.collect_side_by_side({!r}, processes=1)"
    names = [f"slow-{i}" for i in range(5)]
    command = [PYTHON, "-c", run.format(side_by_side.sys.executable, names)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not diary.exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) != 0
    time.sleep(1.5)
    assert len(read(diary)) < 2


# ---------------------------------------------------------------- which of them


def unavailable() -> str:
    return next(p.id for p in catalogue.CATALOGUE.values() if not machine.availability(p).runnable)


def test_what_cannot_run_here_is_said_and_skipped_or_refused() -> None:
    lacking, said = unavailable(), []
    assert runnable(["torch-fp32", lacking, "torch-fp32"], skip_unavailable=True, say=said.append) == ["torch-fp32"]
    assert len(said) == 1 and said[0].startswith(f"{lacking} skipped: ")
    with pytest.raises(PlatformError, match=f"platform {lacking} must be runnable on this machine, but: "):
        runnable(["torch-fp32", lacking])
    with pytest.raises(UnknownName, match="abacus"):
        runnable(["abacus"], skip_unavailable=True)


def test_the_hardware_here_is_named_by_what_answers() -> None:
    here = machine.hardware_here(catalogue.get("torch-fp32")).id
    assert hardware_of_here(["torch-fp32", "torch-bf16"]) == [here]
    virtual = next(i for i in catalogue.CATALOGUE if i.startswith("vgpu-a100"))
    assert hardware_of_here(["torch-fp32", virtual]) == sorted([here, "virtual-a100"])


def test_there_is_a_process_for_each_core_that_this_one_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert side_by_side.at_once() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert side_by_side.at_once() == (os.cpu_count() or 1)


# ---------------------------------------------------------------- the command


def test_several_platforms_of_one_command_are_collected_apart(diary: Path, tmp_path: Path) -> None:
    lacking = unavailable()
    words = [
        "collect",
        "--platform",
        "torch-fp32",
        "--platform",
        lacking,
        "--platform",
        "ort-fp32",
        "--out",
        str(tmp_path),
    ]
    words += ["--skip-unavailable", "--batch-size", "2", "--batch-size", "3", "--probes", "text", "--progress", "json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0 and f"{lacking} skipped: " in result.output
    found = read(diary)
    assert set(found) == {"torch-fp32", "ort-fp32"}
    assert " ".join(found["ort-fp32"][2]).endswith("--probes text --batch-size 2 --batch-size 3 --params params.yaml")
    assert sum(json.loads(x)["probes"] for x in result.output.splitlines() if x.startswith("{")) == 14


def test_a_server_that_runs_is_one_platform() -> None:
    words = ["collect", "--platform", "vllm-bf16", "--platform", "vllm-fp32", "--base-url", "http://127.0.0.1:1/v1"]
    result = CliRunner().invoke(main, [*words, "--model", "llama"])
    assert result.exit_code == 2 and "and one platform" in result.output


# ---------------------------------------------------------------- scripts/demo.py


def test_the_demo_changes_one_line_of_params_yaml(tmp_path: Path) -> None:
    demo, path = script("demo"), tmp_path / "params.yaml"
    before = (Path(__file__).parent.parent / "params.yaml").read_text()
    path.write_text(before)
    assert demo.use(["amd-zen3/*", "torch-fp32"], path)
    changed = [(a, b) for a, b in zip(before.splitlines(), path.read_text().splitlines(), strict=True) if a != b]
    assert [b for _, b in changed] == ['use: ["amd-zen3/*", "torch-fp32"]']
    stamp = path.stat().st_mtime_ns
    assert not demo.use(["amd-zen3/*", "torch-fp32"], path) and path.stat().st_mtime_ns == stamp
    path.write_text("use:\n  - a\nmodels: []\nprobes: {seed: 1, length: 4, sets: {}}\n")
    with pytest.raises(ConfigError, match=r"must hold one line `use: \[...\]`, but it holds 0"):
        demo.use(["b"], path)
