"""Which known hardware a machine computes like: by equal bits, and checked against what the device says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import hspi
import synthetic
from hspi import errors, identity
from hspi.cli import main
from hspi.identity import ALIKE, comparable, equal_bits, identify, is_capped_alike
from hspi.platforms import machine
from hspi.platforms.catalogue import get
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures.schema import Signature
from hspi.signatures.store import STORE, signature_path

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path.stem for path in (ROOT / STORE).glob("*.dvc"))
FACTS = {
    "amd-zen3": ("AuthenticAMD", "25/1/1", "sse4_2 avx fma avx2 f16c"),
    "amd-zen2": ("AuthenticAMD", "23/49/0", "sse4_2 avx fma avx2 f16c"),
    "intel-haswell": ("GenuineIntel", "6/63/2", "sse4_2 avx fma avx2 f16c"),
}


def signature(hardware: str, software: str, bits: str, version: str = "1", **platform: str) -> Signature:
    """What `hardware` answers as `software`: the bits of a synthetic platform."""
    one = synthetic.signature(bits, "one", "text", "b1")
    vendor, numbers, flags = FACTS[hardware]
    cpu = {"cpu_vendor": vendor, "cpu_family_model_stepping": numbers, "cpu_flags": flags, "cpu_model": "a CPU"}
    record = Platform(software, "pytorch", **platform)
    return replace(one, header=replace(one.header, platform=record, facts=cpu | {"version_torch": version}))


def other_bits(one: Signature, places: int) -> Signature:
    """The same but for the last bit in the first so many places."""
    values = one.topk_logprobs.copy()
    values.flat[:places] = np.nextafter(values.flat[:places], np.float32(-100))
    return replace(one, topk_logprobs=values)


STORED = [
    signature("amd-zen3", "a", "fp32-a"),
    signature("amd-zen3", "b", "bf16-a"),
    signature("intel-haswell", "a", "fp32-a"),
    signature("intel-haswell", "b", "bf16-b"),
]


def test_a_machine_computes_like_hardware_with_its_bits_in_every_software() -> None:
    (found,) = identify([signature("amd-zen3", "a", "fp32-a"), signature("amd-zen3", "b", "bf16-a")], STORED)
    assert (found.like, found.nearest, found.agrees) == (("amd-zen3",), "amd-zen3", True)
    assert found.rows[0].alike == ("amd-zen3", "intel-haswell") and found.rows[1].alike == ("amd-zen3",)
    assert found.rows[1].shares["intel-haswell"] < 0.5
    assert found.answer() == "computes like amd-zen3, alike in 2 of 2 softwares"
    assert found.check() == "agree: signatures of amd-zen3 have the same bits"


def test_a_machine_that_says_what_its_bits_deny_is_told_so() -> None:
    (found,) = identify([signature("intel-haswell", "a", "fp32-a"), signature("intel-haswell", "b", "bf16-a")], STORED)
    assert (found.like, found.agrees) == (("amd-zen3",), False)
    assert found.check() == "disagree: signatures of intel-haswell have other bits in b"


def test_a_machine_that_shares_one_software_is_alone() -> None:
    (found,) = identify([signature("amd-zen2", "a", "fp32-b"), signature("amd-zen2", "b", "bf16-b")], STORED)
    assert (found.like, found.nearest, found.agrees) == ((), "intel-haswell", True)
    assert found.answer() == "computes like no known hardware; nearest is intel-haswell, alike in 1 of 2 softwares"
    assert found.check() == "agree: there are no signatures of amd-zen2, and it computes like none that there are"


def test_unknown_hardware_that_computes_like_another_is_neither_confirmed_nor_denied() -> None:
    (found,) = identify([signature("amd-zen2", "a", "fp32-a")], STORED)
    assert (found.like, found.agrees) == (("amd-zen3", "intel-haswell"), None)
    assert found.check() == "no signatures of amd-zen2 to compare with"


def test_hardware_with_few_signatures_does_not_hide_what_more_of_them_say() -> None:
    stored = [signature("amd-zen3", "a", "fp32-a"), signature("amd-zen3", "b", "bf16-a"), STORED[2]]
    stored += [signature("amd-zen3", "c", "fp32-b")]
    answers = [signature("amd-zen2", *pair) for pair in (("a", "fp32-a"), ("b", "bf16-a"), ("c", "int8-a"))]
    (found,) = identify(answers, stored)
    assert (found.like, found.nearest) == ((), "amd-zen3")


def test_what_nobody_has_signatures_of_says_nothing() -> None:
    (found,) = identify([signature("amd-zen3", "new", "fp32-a")], STORED)
    assert (found.like, found.nearest, found.agrees) == ((), "", None)
    assert found.answer() == "nobody has signatures of these softwares to compare with"


def test_each_hardware_that_answers_is_identified_by_itself() -> None:
    gpu = signature("amd-zen3", "a", "fp32-a", device="cuda")
    gpu = replace(gpu, header=replace(gpu.header, facts={**gpu.header.facts, "gpu": "Tesla T4"}))
    found = identify([signature("amd-zen3", "b", "bf16-a"), gpu], STORED)
    assert [i.hardware.id for i in found] == ["amd-zen3", "nvidia-t4"]


def test_equal_bits_are_counted_place_by_place() -> None:
    one = STORED[0]
    size = one.topk_ids.size
    assert equal_bits(one, one) == 1.0
    assert equal_bits(one, other_bits(one, 3)) == pytest.approx(1 - 3 / size)
    fewer = replace(one, probe_id=one.probe_id[2:], topk_ids=one.topk_ids[2:], topk_logprobs=one.topk_logprobs[2:])
    assert equal_bits(one, fewer) == 0.0
    few, many = size // 2000, size // 500
    (found,) = identify([STORED[2]], [other_bits(STORED[0], few)])
    assert found.like == ("amd-zen3",) and found.rows[0].shares["amd-zen3"] > ALIKE
    assert identify([STORED[2]], [other_bits(STORED[0], many)])[0].like == ()


@pytest.mark.parametrize(
    "changed",
    [{"weights_hash": "w"}, {"probe_hash": "p"}, {"nuisance": Nuisance("b4", 4)}, {"positions": 1}],
    ids=lambda changed: next(iter(changed)),
)
def test_another_question_is_not_compared(changed: dict[str, object]) -> None:
    other = replace(STORED[0], header=replace(STORED[0].header, **changed))
    assert identify([STORED[0]], [other])[0].rows[0].shares == {}


def test_another_version_of_the_engine_is_said() -> None:
    (found,) = identify([signature("amd-zen3", "a", "fp32-b", version="2")], STORED)
    assert found.rows[0].versions == {"amd-zen3": "torch 1", "intel-haswell": "torch 1"}


def test_the_same_software_under_a_cap_elsewhere_is_told_apart_from_the_software() -> None:
    capped = signature("intel-haswell", "a-avx2", "fp32-b", provenance="capped", isa_cap="avx2")
    (found,) = identify([signature("amd-zen2", "a", "fp32-b")], [*STORED, capped])
    assert found.rows[0].as_capped == ("intel-haswell/a-avx2",) and found.rows[0].alike == ()
    assert is_capped_alike(get("torch-bf16"), get("torch-bf16-avx2"))
    assert not is_capped_alike(get("torch-bf16"), get("torch-fp32-avx2"))
    assert not is_capped_alike(get("torch-bf16"), get("torch-bf16-eager"))


def test_a_store_is_read_only_where_it_can_be_compared(tmp_path: Path) -> None:
    keep(tmp_path, STORED)
    found = list(comparable(tmp_path, [signature("amd-zen2", "a", "fp32-a")]))
    assert [s.header.placed.id for s in found] == ["amd-zen3/a", "intel-haswell/a"]


def keep(root: Path, signatures: Sequence[Signature]) -> None:
    for one in signatures:
        h = one.header
        synthetic.write(one, signature_path(root, h.hardware.id, h.placed.software, h.model, h.probe_set, "b1"))


# ---------------------------------------------------------------- what ships


@pytest.fixture(scope="module")
def shipped() -> list[Signature]:
    """Of one model, alone and text probes: what a machine would be compared with."""
    from hspi.signatures.schema import read_signature

    return [read_signature(path) for path in (ROOT / STORE).glob("*/*/llama/text.b1.parquet")]


@pytest.mark.parametrize("hardware", SHIPPED)
def test_every_dataset_that_ships_is_identified_as_its_hardware(hardware: str, shipped: list[Signature]) -> None:
    own = [s for s in shipped if s.header.hardware.id == hardware]
    if not own:
        pytest.skip(f"data/signatures/{hardware} is not pulled")
    (found,) = identify(own, shipped)
    assert hardware in found.like and found.agrees
    for twin in found.like:  # another may stand beside it only where every bit is the same
        assert all(row.shares[twin] == 1.0 for row in found.rows if twin in row.shares)
    quick = [s for s in own if s.header.platform.id in identity.SOFTWARES]
    assert not quick or hardware in identify(quick, shipped)[0].like


# ---------------------------------------------------------------- the verb


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A store, and a machine that answers without running anything. It is an AMD Zen 3, one platform is missing."""
    answers = [signature("amd-zen3", "torch-fp32", "fp32-a", version="2")]
    answers += [signature("amd-zen3", "torch-bf16", "bf16-b"), signature("amd-zen3", "ct2-fp32", "int8-a")]
    monkeypatch.setattr(identity, "ask_here", lambda *_: (answers, {"ort-fp32": "needs a package"}))
    stored = [signature("amd-zen3", "torch-fp32", "fp32-a"), signature("intel-haswell", "torch-fp32", "fp32-a")]
    stored += [signature("amd-zen3", "torch-bf16", "bf16-a")]
    stored += [signature("intel-haswell", "torch-bf16-avx2", "bf16-b", isa_cap="avx2")]
    keep(tmp_path, stored)
    return tmp_path


def test_the_table_says_where_the_machine_is_alone(answering: Path) -> None:
    done = CliRunner().invoke(main, ["whoami", "--store", str(answering), "--model", "one"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1][:4] == ["torch-fp32", "amd-zen3,", "intel-haswell", "1.0000"]
    assert " ".join(rows[1][4:]) == "torch 1 there"
    assert rows[2][:2] == ["torch-bf16", "alone"]
    assert " ".join(rows[2][3:]) == "nearest is amd-zen3; as intel-haswell/torch-bf16-avx2"
    assert rows[3][:2] == ["ct2-fp32", "–"]
    assert "disagree: signatures of amd-zen3 have other bits in torch-bf16" in done.stdout
    assert "CPUID says family 25, model 1, stepping 1" in done.stdout
    assert "ort-fp32: needs a package" in done.stdout


def test_json_has_all_of_it(answering: Path) -> None:
    done = CliRunner().invoke(main, ["whoami", "--store", str(answering), "--model", "one", "--json"])
    found = json.loads(done.stdout)
    (one,) = found["identities"]
    assert one["hardware"]["id"] == "amd-zen3" and one["agrees"] is False and one["check"].startswith("disagree")
    assert one["rows"][0]["alike"] == ["amd-zen3", "intel-haswell"] and found["skipped"] == {
        "ort-fp32": "needs a package"
    }


def test_a_store_without_the_model_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="must hold signatures of 'llama'"):
        hspi.whoami(store=tmp_path)


def test_a_machine_on_which_nothing_runs_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, STORED)
    monkeypatch.setattr(machine, "availability", lambda p: machine.Availability(False, "needs a wheel"))
    with pytest.raises(errors.PlatformError, match="none did: torch-fp32: needs a wheel"):
        hspi.whoami(["torch-fp32"], store=tmp_path, model="one")


def test_a_collection_that_fails_is_said_and_the_others_go_on() -> None:
    answers, skipped = identity.ask_here([get("torch-fp32")], "no-such-model", ROOT / "params.yaml", lambda _: None)
    assert not answers and "no-such-model" in skipped["torch-fp32"]


@pytest.mark.slow
def test_a_machine_knows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it collected a minute ago are known hardware's signatures."""
    monkeypatch.chdir(ROOT)
    runs = [id for id in identity.SOFTWARES if machine.availability(get(id)).runnable]
    collect = [sys.executable, "-m", "hspi", "collect", "--model", "llama", "--probes", "text", "--batch-size", "1"]
    for id in runs:
        subprocess.run([*collect, "--platform", id, "--out", str(tmp_path), "--progress", "none"], check=True)
    answer = hspi.whoami(store=tmp_path)
    assert set(answer.skipped) == {*identity.SOFTWARES} - {*runs}
    for found in answer.identities:
        assert found.like == (found.hardware.id,) and found.agrees
        assert all(row.shares == {found.hardware.id: 1.0} for row in found.rows)
