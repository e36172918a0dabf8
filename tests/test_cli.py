"""The command line: help everywhere, one line for an error, and exit codes that scripts can trust."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import synthetic
from hspi import errors
from hspi.cli import _Verbs, main
from hspi.cli.common import Ticker, show
from hspi.params import load
from hspi.platforms import catalogue, machine
from synthetic import World


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from verbs(command, (*path, name))


VERBS = list(verbs(main))


def command_of(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def refused(result: Result, code: int = 2) -> str:
    """The one line of the error."""
    lines = [line for line in result.stderr.splitlines() if line]
    assert result.exit_code == code, result.output
    assert len(lines) == 1 and lines[0].startswith("Error: "), lines
    return lines[0]


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("path", [(), *VERBS], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(path: tuple[str, ...], flag: str) -> None:
    result = run(*path, flag)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: main {' '.join(path)}".rstrip())
    text = (command_of(path).help or "").strip()
    assert text and text.splitlines()[0].split()[0] in result.output


@pytest.mark.parametrize("path", [v for v in VERBS if not isinstance(command_of(v), click.Group)], ids=" ".join)
def test_every_option_says_what_it_is_for_or_what_it_takes(path: tuple[str, ...]) -> None:
    for option in command_of(path).params:
        if isinstance(option, click.Option) and not option.is_flag:
            assert option.help or option.default is not None or option.show_default, option.name


def examples() -> list[str]:
    texts = [command_of(v).help or "" for v in [(), *VERBS]]
    found = [m.strip() for t in texts for m in re.findall(r"(?<!`)\bhspi (?!is)[a-z].*?(?=  |$)", t, re.M)]
    return [f for f in found if "`" not in f]


def test_examples_are_found() -> None:
    assert len(examples()) >= 6


@pytest.mark.parametrize("line", examples())
def test_examples_in_help_are_commands_that_parse(line: str) -> None:
    _, *words = shlex.split(line)
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    try:
        command.make_context("x", words)
    except click.BadParameter as error:
        assert "does not exist" in error.message, "files of an example need not be here, but options must"


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "pyarrow", "sklearn", "xgboost", "optuna", "mlflow", "pandas", "numba")
    code = f"import sys, hspi.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_and_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "hspi", "--version"], capture_output=True, text=True, check=True)
    from hspi import __version__

    assert __version__ in done.stdout


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.HspiError("x"), 70),
        (errors.ConfigError("x"), 2),
        (errors.UnknownName("thing", "x", ["y"]), 2),
        (errors.PlatformError("x"), 2),
        (errors.MissingExtra("x", "y"), 2),
        (errors.ModelError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.EndpointError("x"), 4),
    ],
)
def test_every_error_of_ours_is_one_line_and_its_exit_code(error: errors.HspiError, code: int) -> None:
    assert refused(CliRunner().invoke(failing(error), ["verb"]), code) == f"Error: {error}"


def failing(error: BaseException) -> click.Group:
    @click.command()
    def verb() -> None:
        raise error

    return _Verbs("group", commands={"verb": verb})


def test_an_error_of_nobody_s_is_70_and_never_the_code_of_a_contradicted_claim() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("oh")), ["verb"])
    assert result.exit_code == 70 and "ZeroDivisionError: oh" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["collect"],
        ["collect", "--platform"],
        ["collect", "--platform", "torch-fp32", "--batch-size", "0"],
        ["collect", "--platform", "torch-fp32", "--jobs", "0"],
        ["verdict"],
        ["verdict", "absent.parquet"],
        ["verdict", __file__, "--alpha", "1"],
        ["verdict", __file__, "--alpha", "0"],
        ["verdict", __file__, "--probes", "0"],
        ["verdict", __file__, "--top-k", "1"],
        ["demo", "--seed", "x"],
        ["signatures", "add", "absent"],
    ],
)
def test_wrong_usage_is_2_and_its_last_line_says_why(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ") and "Traceback" not in result.output


@pytest.mark.parametrize(
    "verb", ["collect --platform torch-fp32", "reference", "featurize", "tune", "train", "evaluate"]
)
def test_a_params_file_that_is_not_there(verb: str, tmp_path: Path) -> None:
    result = run(*verb.split(), "--params", str(tmp_path / "absent.yaml"))
    assert "params file must exist" in refused(result)
    assert not list(tmp_path.iterdir()), "bad input leaves nothing behind"


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    out = str(tmp_path / "s")
    assert "platform must be one of" in refused(run("collect", "--platform", "abacus", "--out", out))
    one = ["collect", "--platform", "torch-fp32", "--out", out]
    assert "probe set must be one of" in refused(run(*one, "--probes", "riddles"))
    assert "model must be one of" in refused(run(*one, "--model", "nobody", "--progress", "none"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("verb", ["tune", "train", "evaluate"])
def test_a_stage_whose_input_is_missing_says_which_verb_makes_it(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = (Path(__file__).parent.parent / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(params)
    assert "run `hspi featurize`" in refused(run(verb))


# ---------------------------------------------------------------- catalogue and collection


def test_platforms_for_people_and_for_machines() -> None:
    rows = json.loads(run("platforms", "list", "--json").output)
    assert [r["id"] for r in rows] == list(catalogue.CATALOGUE)
    assert all(bool(r["why_not"]) != r["runnable"] for r in rows)
    assert {r["provenance"] for r in rows} <= {"real", "capped", "emulated"}
    lines = run("platforms", "list").output.splitlines()
    assert lines[0].split()[:2] == ["id", "provenance"]
    wanted = load(Path(__file__).parent.parent / "params.yaml").demo.collect
    assert set(wanted) <= {line.split()[0] for line in lines[1:]}


def test_models_list() -> None:
    rows = json.loads(run("models", "list", "--json").output)
    assert {"llama", "qwen3", "gemma", "neox"} <= {r["id"] for r in rows}


def test_a_platform_that_cannot_run_is_skipped_only_when_asked(tmp_path: Path) -> None:
    lacking = next(p.id for p in catalogue.CATALOGUE.values() if not machine.availability(p).runnable)
    one = ["collect", "--platform", lacking, "--out", str(tmp_path / "s"), "--progress", "none", "--jobs", "1"]
    assert lacking in refused(run(*one))
    assert not (tmp_path / "s").exists()
    result = run(*one, "--skip-unavailable")
    assert result.exit_code == 0 and result.output.startswith(f"{lacking} skipped: ")
    assert not (tmp_path / "s").exists(), "a dataset holds what a machine answered, and nothing else"
    assert lacking in refused(run(*one, "--platform", "torch-fp32"))


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"a": 1, "b": "long"}, {"a": 100, "c": 1}], ["a", "b"], as_json=False)
    assert capsys.readouterr().out.splitlines() == ["a    b", "1    long", "100"]


def test_progress_as_json_is_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Ticker("json", 5, "x") as ticker:
        ticker.tick(0)
        ticker.tick(2)
        ticker.expect(4)
        ticker.tick(3)
    said = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert said == [{"probes": 2}, {"expect": 4}, {"probes": 3}]
    with Ticker("none", 5, "x") as ticker:
        ticker.tick(2)
        ticker.expect(1)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- verdicts


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, and signatures that its library knows, and one that it does not."""
    at = tmp_path_factory.mktemp("judge")
    detector = synthetic.trained(world)
    kept = [p for p in synthetic.PATTERNS if p != "int8-a"]
    detector = detector.with_library(synthetic.library("one", kept))
    detector.save(at / "detector")
    for platform in ("bf16-a", "bf16-b", "fp32-b", "int8-a"):
        synthetic.write(synthetic.signature(platform, "one", "text", "b2"), at / f"{platform}.parquet")
    return at


def verdict(folder: Path, file: str, *more: str) -> Result:
    return run("verdict", str(folder / f"{file}.parquet"), "--detector", str(folder / "detector"), *more)


@pytest.mark.parametrize(
    ("file", "options", "code", "outcome"),
    [
        ("bf16-a", "", 0, "identified"),
        ("bf16-a", "--claim bf16-a", 0, "consistent"),
        ("bf16-a", "--claim bf16-twin", 0, "consistent"),
        ("bf16-a", "--claim fp32-a", 1, "contradicted"),
        ("bf16-a", "--alpha 1e-9", 3, "inconclusive"),
        ("bf16-a", "--alpha 1e-9 --claim fp32-a", 1, "contradicted"),  # another's very values need no level
        ("int8-a", "", 3, "unknown"),
        ("int8-a", "--claim bf16-a", 1, "contradicted"),
        ("bf16-a", "--claim cpu/bf16-a", 0, "consistent"),
        ("bf16-a", "--claim-hardware cpu", 0, "consistent"),
        ("bf16-a", "--claim bf16-a --claim-hardware c*", 0, "consistent"),
        ("bf16-a", "--claim amd-zen4/bf16-a", 3, "inconclusive"),  # nobody can test it
        ("bf16-a", "--claim-hardware amd-*", 3, "inconclusive"),
        ("bf16-a", "--claim amd-zen4/fp32-a", 1, "contradicted"),  # by its number format
        ("fp32-b", "--claim fp32-a", 1, "contradicted"),  # by another's very values
    ],
)
def test_the_exit_code_is_the_outcome(folder: Path, file: str, options: str, code: int, outcome: str) -> None:
    result = verdict(folder, file, *options.split(), "--json")
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert found["outcome"] == outcome and found["probes"] == 32 and found["top_k"] == 20
    text = verdict(folder, file, *options.split())
    assert text.exit_code == code and f"({outcome})" in text.output and found["answer"] in text.output


def test_a_verdict_says_what_was_tested_and_which_batch_class_answers_so(folder: Path) -> None:
    def found(*options: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(verdict(folder, "bf16-b", *options, "--json").stdout)
        assert {"tested", "batch_class", "p_values", "claim", "claim_p_value"} <= set(said)
        assert set(said["p_values"]) == set(said["posterior"]) - {"unknown"}
        assert all(0 < p <= 1 for p in said["p_values"].values())
        return said

    plain = found()
    assert (plain["tested"], plain["claim"], plain["batch_class"]) == ([], None, "b2 (2)")
    assert [name for name, p in plain["p_values"].items() if p > plain["alpha"]] == plain["set_at"]
    true = found("--claim", "bf16-b")
    assert true["tested"] == ["cpu/bf16-b"] and true["claim_p_value"] == true["p_values"]["cpu/bf16-b"]
    every = found("--claim-hardware", "cpu")
    assert len(every["tested"]) == 5 and every["claim"] == "cpu/*"
    nobody = found("--claim", "amd-zen4/bf16-b")
    assert (nobody["tested"], nobody["claim_p_value"]) == ([], None) and nobody["answer"] == "cpu/bf16-b"
    assert "amd-zen4/bf16-b, so the claim itself was not tested" in nobody["why"] and "bf16, was" in nobody["why"]
    lines = verdict(folder, "bf16-b", "--claim", "amd-zen4/bf16-b").output.splitlines()
    assert "tested        no candidate is what is claimed" in lines
    assert any(line.endswith("batch class b2 (2)") for line in lines)


def test_fewer_probes_and_tokens_are_used_when_asked(folder: Path) -> None:
    found = json.loads(verdict(folder, "bf16-a", "--probes", "3", "--top-k", "7", "--json").stdout)
    assert (found["probes"], found["top_k"]) == (3, 7)


def test_what_cannot_be_judged_is_2(folder: Path, tmp_path: Path) -> None:
    assert "a claim must name software that is known" in refused(verdict(folder, "bf16-a", "--claim", "h100"))
    assert "it is empty" in refused(verdict(folder, "bf16-a", "--claim", ""))
    two = ["--claim", "amd-zen2/bf16-a", "--claim-hardware", "intel-*"]
    assert "must name one hardware" in refused(verdict(folder, "bf16-a", *two))
    (tmp_path / "x.parquet").write_bytes(b"no signature")
    detector = ["--detector", str(folder / "detector")]
    assert "must be a signature" in refused(run("verdict", str(tmp_path / "x.parquet"), *detector))
    lost = run("verdict", str(folder / "bf16-a.parquet"), "--detector", str(tmp_path))
    assert "must hold a detector" in refused(lost)
