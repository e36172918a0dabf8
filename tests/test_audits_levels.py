"""Every level of evidence, on endpoints that give as much: formulas in the fast tests, real servers in the slow one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from click.testing import CliRunner

import audit_world as world
from conftest import Tree, free_port
from hspi import zoo
from hspi.audits import folder as folders
from hspi.audits.discovery import Capabilities, Form
from hspi.audits.levels.agreement import NEAR_TIE, RoundedScorer, Symbols, TextScorer, near_ties
from hspi.audits.levels.level import Offer
from hspi.audits.levels.residual import FEWEST, REFERENCE, Residual, said_of
from hspi.cli import main
from hspi.detectors.number_format import Formats, format_of
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned
from hspi.evidence.observation import Observation
from hspi.platforms import machine
from hspi.platforms.catalogue import get
from hspi.signatures.top_k import top_k
from lessening import Lessening

if TYPE_CHECKING:
    from hspi.audits.plan import Plan

EVERY = np.ones(world.SIZE, bool)
TEXTS = [world.text_of([i]) for i in range(world.VOCABULARY)]

# ---------------------------------------------------------------- text


def test_symbols_are_what_a_reader_can_tell_apart() -> None:
    symbols = Symbols(["a", " a", "b", "</s>", "\n", "\ufffd"], special=[3])
    assert symbols.of.tolist() == [0, 0, 2, 3, 3, 5]
    assert [symbols.read(t) for t in (" a", "a ", "b", "", "</s>")] == [0, 0, 2, 3, 3]
    assert symbols.unclear.tolist() == [False, False, False, True, True, True]
    for text in ("c", None, 7):
        with pytest.raises(ValueError, match="text"):
            symbols.read(text)


def test_text_asks_near_ties_of_the_reference_whatever_platforms_say() -> None:
    data = world.detector().library("toy").data
    chosen = near_ties(data, Symbols(TEXTS))
    gap = data.reference[:, 0] - data.reference[:, 1]
    assert 0 < chosen.sum() < len(gap) and (chosen == (gap <= NEAR_TIE)).all()
    assert not near_ties(data, Symbols(["same"] * world.VOCABULARY)).any()


@pytest.mark.parametrize("kind", ["text", "rounded-1", "rounded-3"])
def test_honest_platforms_are_hardly_ever_excluded_at_lesser_levels(kind: str) -> None:
    """Every platform under settings that no signature has, on many orders of the probes."""
    detector, alarms, audits = world.detector(), 0, 0
    if kind == "text":
        scorer: Any = TextScorer(detector, "toy", world.SEED, Symbols(TEXTS), EVERY)
    else:
        scorer = RoundedScorer(detector, "toy", 20, world.SEED, int(kind[-1]), EVERY)
    rng = np.random.default_rng(0)
    for label, name in enumerate(scorer.told.platform_ids):
        for setting in range(30, 38):
            at = [int(i) for i in rng.permutation(scorer.split.test) if scorer.asks(int(i))]
            ids, values = top_k(world.answers(world.FORMULAS[name], setting)[at], scorer.k)
            if kind != "text":
                values = np.round(values.astype(float), int(kind[-1])).astype(np.float32)
            seen = Observation("toy", [("tokens", i) for i in at], ids, values)
            alarms += scorer.processes(scorer.scores(seen))[scorer.told.label[label]].max() >= -np.log(0.05)
            audits += 1
    assert audits == 48 and alarms <= 5  # 2.4 expected at most


# ---------------------------------------------------------------- residual


def formats(size: float = 0.0, **posterior: tuple[float, float]) -> Formats:
    return Formats({"bf16": (0.0, 0.0), "int8": (0.0, 0.0), "int4": (0.0, 0.0), **posterior}, size)


INT4, BF16 = formats(int4=(0.95, 1.0)), formats(bf16=(0.95, 1.0))


@pytest.mark.parametrize(
    ("told", "claimed", "platform", "outcome"),
    [
        (INT4, "bf16", None, "contradicted"),
        (INT4, "bf16", "torch-bf16", "contradicted"),
        (INT4, "int4", None, "consistent"),
        (INT4, "int4", "torchao-int4wo", "inconclusive"),  # others have that format too
        (INT4, None, None, "inconclusive"),
        (BF16, "int4", None, "inconclusive"),  # finer than claimed cheats nobody
        (INT4, "fp4", None, "inconclusive"),  # a format never trained on
        (formats(int4=(0.8, 1.0)), "bf16", None, "inconclusive"),  # one block is not sure
        (formats(int4=(0.95, 1.0), bf16=(0.0, 0.04)), "bf16", None, "inconclusive"),  # nor are all against the claim
        (formats(size=9.0, int4=(1.0, 1.0)), "bf16", None, "inconclusive"),  # other weights
    ],
)
def test_a_format_is_contradicted_only_by_a_coarser_one_that_every_part_shows(
    told: Formats, claimed: str | None, platform: str | None, outcome: str
) -> None:
    assert said_of(told, claimed, platform)[0] == outcome


def test_a_reference_that_foretells_nothing_is_refused_and_accuses_nobody(tmp_path: Path) -> None:
    level = Residual(Offer(Capabilities(Form("completions", True, True, 20), top_k=20), world.material("http://h")), "")
    plan = cast("Plan", SimpleNamespace(probes=[world.probe(i) for i in (0, 1)]))

    def refer(probes: Any, contexts: Any) -> Aligned:
        data = world.refer(probes, contexts)
        return replace(data, predicted=np.full_like(data.predicted, np.nan))

    with pytest.raises(DataError, match="foretells"):
        level.prepare(plan, tmp_path, refer)
    (tmp_path / REFERENCE).unlink()
    level.prepare(plan, tmp_path, world.refer)
    assert level.reference.probes == [("tokens", 0), ("tokens", 1)]


# ---------------------------------------------------------------- real servers

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


@pytest.fixture(scope="module")
def behind(smoke: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A platform that neither the pipeline's library nor what ships here has, served for real."""
    port, away = free_port(), tmp_path_factory.mktemp("away")
    for folder in smoke.path.glob("data/signatures/*/torch-bf16-eager"):
        shutil.move(folder, away / folder.parent.name)
    command = ["hspi", "serve", "--platform", "torch-bf16-eager", "--model", "llama", "--port", str(port)]
    with smoke.serving(*command, ready=f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1"
    for folder in away.iterdir():  # other tests find the tree as the pipeline left it
        shutil.move(folder, smoke.path / "data" / "signatures" / folder.name / "torch-bf16-eager")


def audit(url: str, out: Path, *more: str, weights: str = "llama", code: int | None = None) -> dict[str, Any]:
    words = ["audit", "--base-url", url, "--model", "llama", "--weights", weights, "--no-mlflow", "--json"]
    done = CliRunner().invoke(main, [*words, "--out", str(out), *more])
    assert done.exit_code in (0, 1, 3) if code is None else done.exit_code == code, done.output
    if code == 2:
        return {"said": done.stderr.strip().splitlines()[-1], "told": done.stderr}
    found: dict[str, Any] = json.loads(done.stdout)
    assert "level of evidence" in (out / "report.html").read_text("utf-8")
    return {**found, "told": done.stderr}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_honest_virtual_gpu_is_consistent_over_http(
    smoke: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served and collected by emulated matrix units; the detector was trained on real platforms alone."""
    monkeypatch.chdir(smoke.path)
    claim, port = "vgpu-a100-bf16-k1", free_port()
    command = ["hspi", "serve", "--platform", claim, "--model", "llama", "--port", str(port)]
    with smoke.serving(*command, ready=f"http://127.0.0.1:{port}/health"):
        url, candidates = f"http://127.0.0.1:{port}/v1", ["--candidates", "local,store,emulated"]
        found = audit(url, tmp_path / "true", "--claim", claim, *candidates, code=0)
        lie = audit(url, tmp_path / "lie", "--claim", "torch-fp32", *candidates, code=1)
    assert (found["outcome"], found["answer"], found["plan"]) == ("consistent", "vgpu:ampere+ada:bf16", "k1")
    assert found["members"] == lie["members"] == found["tested"] == [f"virtual-a100/{claim}"]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # the small pipeline included, where this test is the first that wants it
def test_levels_on_a_real_server(smoke: Tree, behind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(smoke.path)
    here, local = "torch-bf16-eager", ["--candidates", "local,store"]
    full = f"{machine.hardware_here(get(here)).id}/{here}"

    unknown = audit(behind, tmp_path / "unknown", "--claim", "abacus", code=2)
    assert "--candidates local,store" in unknown["said"] and "abacus" in unknown["said"]
    untested = audit(behind, tmp_path / "untested", "--claim", here, code=3)
    assert untested["tested"] == [] and f"no candidate is {here}" in untested["why"]

    first = audit(behind, tmp_path / "local", "--claim", here, *local)
    assert f"collecting {here}" in first["told"] and first["level"] == "replay"
    own = folders.load(tmp_path / "local").detector.library("llama").class_of(full)[0]  # its class, as measured here
    assert (first["set_at"], first["outcome"], first["tested"]) == ([own], "consistent", [full])
    lie = audit(behind, tmp_path / "lie", "--claim", "torch-fp32", *local)
    assert "collecting" not in lie["told"] and lie["outcome"] == "contradicted" and full in lie["members"]
    assert len({name.partition("/")[0] for name in lie["tested"]}) > 1, "on every hardware that ships"

    with Lessening(behind, "rounded-2").serving() as url:
        true = audit(url, tmp_path / "rounded", "--claim", here, *local)
        assert true["level"] == "replay, rounded to 2 decimals" and own in true["set_at"]
        false = audit(url, tmp_path / "rounded-lie", "--claim", "torch-fp32", *local)
        assert false["outcome"] == "contradicted" and own in false["set_at"]
        data = folders.load(tmp_path / "rounded-lie").detector.library("llama").data
        left = [(p, s) for p, s in zip(data.platforms, data.steady, strict=True) if p.id in false["set_at"]]
        assert {p.dtype for p, steady in left if steady} == {"bf16"}  # dynamic int8 is hardly like itself either
        assert "fp32" not in {format_of(p) for p, _ in left}
        if false["members"]:  # two decimals part bf16 from bf16 on some CPUs alone
            assert false["failed_factors"]["dtype"] == ["fp32", "bf16"]
    with Lessening(behind, "silent").serving() as url:
        silent = audit(url, tmp_path / "text", "--claim", here, *local)
        assert silent["level"] == "text" and own in silent["set_at"] and silent["outcome"] != "contradicted"

    weights = tmp_path / "llama-chat"
    shutil.copytree(zoo.resolve("llama").path, weights)
    settings = json.loads((weights / "tokenizer_config.json").read_text("utf-8"))
    (weights / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}), "utf-8")
    with Lessening(behind, "chat", zoo.load_tokenizer(zoo.resolve(str(weights)))).serving() as url:
        chat = {"weights": str(weights)}
        right = audit(url, tmp_path / "format", "--claim-format", "bf16", **chat)
        assert (right["level"], right["outcome"]) == ("residual", "consistent") and right["probes"] >= FEWEST
        wrong = audit(url, tmp_path / "format-lie", "--claim-format", "fp32", **chat)
        assert wrong["outcome"] in ("contradicted", "inconclusive")  # the small pipeline saw two formats
        platform = audit(url, tmp_path / "platform", "--claim", "torch-bf16", **chat)
        assert platform["outcome"] == "inconclusive" and "not tested" in platform["why"]
    for name in ("lie", "rounded-lie", "text", "format-lie"):
        again = CliRunner().invoke(main, ["audit", "--replay", str(tmp_path / name), "--json"])
        assert json.loads(again.stdout)["why"] == json.loads((tmp_path / name / "verdict.json").read_text())["why"]
