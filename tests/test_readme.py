"""What the documents tell people to type: cheap commands are run, the rest is parsed by the tool that would run it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from hspi.cli import main
from hspi.report import BEGIN, END
from hspi.report.headlines import HEADLINES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "hspi"
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", *PAGES)
LONGEST = 160  # lines of README.md
CHEAP = {"hspi platforms list", "hspi models list", "hspi platforms list --json", "hspi models list --json"}


def documented() -> Iterator[tuple[str, str]]:
    """(document, command) of every line of every shell block."""
    for name in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text("utf-8"), re.S):
            for line in block.splitlines():
                if words := shlex.split(line, comments=True):
                    yield name, shlex.join(words)


def examples(command: click.Command = main, path: str = "hspi") -> Iterator[tuple[str, str]]:
    """(verb, command) of every example in a help text."""
    for text in re.findall(r"^ +((?:Examples?: +)?hspi .*)$", command.help or "", re.M):
        yield path, re.split(r" {3,}", text.split("Example:")[-1].strip())[0]
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from examples(sub, f"{path} {name}")


COMMANDS = sorted({command for _, command in documented()})
EXAMPLES = sorted({command for _, command in examples()})
OURS = sorted({c for c in (*COMMANDS, *EXAMPLES) if c.startswith("hspi ")})


def test_documents_and_help_have_commands() -> None:
    assert len(COMMANDS) > 15 and len(EXAMPLES) > 6
    assert {"make demo", "make test", "dvc repro"} <= set(COMMANDS)


def paths_that_must_exist(verb: click.Command, words: list[str]) -> Iterator[tuple[Path, click.Path]]:
    """Of the words of a command: each path that the verb wants to find, with what it says of it."""
    for parameter in verb.params:
        kind = parameter.type
        if not isinstance(kind, click.Path) or not kind.exists:
            continue
        if isinstance(parameter, click.Argument):
            given = (w for w in words if not w.startswith("-"))
            yield from ((Path(word), kind) for word in islice(given, 1))  # none, where it may be left out
        else:
            yield from ((Path(b), kind) for a, b in pairwise(words) if a in parameter.opts)


@pytest.mark.parametrize("command", OURS)
def test_our_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every path that must exist made for it, the command line takes the words as they stand."""
    monkeypatch.chdir(tmp_path)
    words = [w.replace("~", str(tmp_path)) for w in shlex.split(command)[1:]]
    found: click.Command = main
    while isinstance(found, click.Group):
        assert words[0] in found.commands, f"{command}: no verb {words[0]}"
        found = found.commands[words.pop(0)]
    for path, kind in paths_that_must_exist(found, words):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if kind.file_okay and path.suffix else path.mkdir(exist_ok=True)
    with found.make_context(found.name, words):
        pass


@pytest.mark.parametrize("command", sorted(CHEAP & set(OURS)))
def test_cheap_commands_run(command: str) -> None:
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0 and done.output.strip(), done.output


def test_named_platforms_are_in_the_catalogue() -> None:
    from hspi.platforms.catalogue import CATALOGUE

    for command in OURS:
        words = shlex.split(command)
        named = [b.rpartition("/")[2] for a, b in pairwise(words) if a in ("--platform", "--claim", "--hide")]
        assert set(named) <= set(CATALOGUE), command


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {shlex.split(c)[1] for c in COMMANDS if c.startswith("make ")}
    assert named and named <= targets


def test_files_in_commands_exist() -> None:
    for name, command in documented():
        for word in shlex.split(command):
            if re.match(r"(flows|benchmarks|scripts|tests)/\S+\.py$", word):
                assert (ROOT / word).exists(), f"{name}: {command}"


def test_named_deployments_exist() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    known = {f"{d['entrypoint'].split(':')[1]}/{d['name']}" for d in deployments}
    named = {shlex.split(c)[3] for c in COMMANDS if c.startswith("prefect deployment run ")}
    assert named and named <= known


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_paths_exist(name: str) -> None:
    """Whatever is written as a file's or folder's path is one, from the root or from the package."""
    text = (ROOT / name).read_text("utf-8")
    ours = "|".join(["src", "tests", "flows", "benchmarks", "mlruns", "scripts", "docs"])
    for path in re.findall(rf"`((?:{ours})/[\w./-]*|[\w./-]+/[\w-]+\.py)`", text):
        assert (ROOT / path).exists() or (PACKAGE / path).exists(), f"{name} names {path}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= LONGEST


def links(name: str) -> Iterator[str]:
    """The target of every link and picture of a document."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text("utf-8"), flags=re.S)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(document: Path) -> set[str]:
    """What a link may name inside a document: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ +(.*)$", document.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in links(name):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{name} links to {target}"


def test_every_page_is_found_from_the_readme() -> None:
    assert set(PAGES) <= set(links("README.md"))


def test_mlflow_is_started_as_the_makefile_does() -> None:
    mark = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"

    def words(text: str) -> list[str]:
        return re.split(r"`|\n\n", text[text.index(mark) :].replace("\\\n", " "))[0].split()

    told = [text for text in ((ROOT / name).read_text("utf-8") for name in DOCUMENTS) if mark in text]
    assert told
    made = words((ROOT / "Makefile").read_text("utf-8").replace("$(PORT)", "5000"))
    assert all(words(text) == made for text in told)


def test_results_in_the_readme_are_those_of_a_run_or_none() -> None:
    """Nobody types a result: the rows are those that `readme_block` writes, in its order, with the host below."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = text[text.index(BEGIN) : text.index(END)]
    rows = [line.split("|")[1].strip() for line in block.splitlines() if line.startswith("|")][2:]
    order = [h.question for h in HEADLINES if h.brief]
    assert rows == [q for q in order if q in rows]
    assert re.search(r"^Hosts?: \S.*\d{4}-\d{2}-\d{2}\.$", block, re.M), "where was it measured?"


@pytest.mark.slow
def test_the_documented_trial_of_a_model_collects(tmp_path: Path) -> None:
    (command,) = [c for c in COMMANDS if "--model data/zoo/llama" in c]
    words = [w.replace("/tmp/tried", str(tmp_path)) for w in shlex.split(command)[1:]]
    subprocess.run([sys.executable, "-m", "hspi", *words, "--progress", "none"], cwd=ROOT, check=True)
    assert list(tmp_path.glob("*/torch-fp32/llama/text.b1.parquet")), "<hardware>/<software>/<model>"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "benchmarks").glob("bench_*.py")))
def test_benchmarks_say_what_they_do(script: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage:") and len(done.stdout) > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "bench_client.py --requests 8 --rounds 1 --milliseconds 1",
        "bench_collect.py --repeats 1 --batch-size 16",
        "bench_evidence.py --repeats 1 --top-k 5",
        "bench_matmul.py --quick --only ampere-bf16",
        "bench_scoring.py --candidates 4 --answers 2",
    ],
)
def test_cheap_benchmarks_run(words: str) -> None:
    script, *options = words.split()
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
