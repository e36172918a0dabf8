"""The store: whose signatures count, and how those that were made elsewhere join; with DVC itself where it matters."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from hspi.cli import main
from hspi.errors import DataError, UnknownName
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures import datasets, store
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header, read_signature
from hspi.signatures.store import in_use, iter_store, signature_path, signatures_of

ROOT = Path(__file__).parent.parent
FLAGS = "sse4_2 avx fma avx2 f16c"
ZEN3 = {"cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": "25/1/1", "cpu_flags": FLAGS}
ZEN3 |= {"cpu_model": "AMD EPYC", "python": "3.11.7", "version_torch": "2.13.0+cpu", "version_onnx": ""}
H100 = {"gpu": "NVIDIA H100 PCIe", "version_torch": "2.12.0", "version_vllm": "0.32.0", "python": "3.12.1"}
FACTS = {"amd-zen3": ZEN3, "nvidia-h100-pcie": H100}


def make(
    folder: Path,
    platform: str | Platform = "h100-bf16",
    nuisance: str = "b1",
    value: float = -1.0,
    *,
    hardware: str = "nvidia-h100-pcie",
    at: Path | None = None,
    **header: Any,
) -> Path:
    given = {"facts": FACTS[hardware], "created": "2026-11-24T10:00:00+00:00", **header}
    record = platform if isinstance(platform, Platform) else Platform(platform, "vllm")
    h = Header(record, "llama", "w", "text", "p", Nuisance(nuisance), positions=1, top_k=2)
    h = Header(**{**{name: getattr(h, name) for name in h.__slots__}, **given})
    path = at or signature_path(folder, hardware, h.placed.software, h.model, "text", nuisance)
    with Journal(path, h) as journal:
        rows = np.array([[[3, 4]], [[5, 6]]], np.int32), np.full((2, 1, 2), value, np.float32)
        journal.append(to_batch(journal.schema, np.arange(2), 4, *rows))
        return journal.finish()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    return root


# ---------------------------------------------------------------- where signatures stand, and which count


def test_a_store_lists_finished_signatures_alone(tmp_path: Path) -> None:
    path = make(tmp_path, "p", "b2", hardware="amd-zen3")
    assert path == tmp_path / "amd-zen3" / "p" / "llama" / "text.b2.parquet"
    path.with_name("x.parquet.partial").write_bytes(b"")
    path.with_name("x.parquet.tmp").write_bytes(b"")
    shutil.copytree(tmp_path / "amd-zen3", tmp_path / ".amd-zen3.tmp")  # what a kill left half-copied
    assert list(iter_store(tmp_path)) == [path]
    assert signature_path(tmp_path, "amd-zen3", "p", "some/where/llama", "text", "b2") == path
    assert store.full_id(path) == "amd-zen3/p"


def test_a_model_is_looked_for_in_its_own_folders(tmp_path: Path) -> None:
    path = make(tmp_path)
    other = make(tmp_path, model="some/where/[qwen]")
    assert list(iter_store(tmp_path, "llama")) == [path] and list(iter_store(tmp_path, "else/[qwen]")) == [other]


@pytest.mark.parametrize(
    ("globs", "found"),
    [
        (["*"], {"amd-zen3/torch-bf16", "amd-zen3/ort-fp32", "nvidia-h100-pcie/torch-bf16"}),
        (["torch-bf16"], {"amd-zen3/torch-bf16", "nvidia-h100-pcie/torch-bf16"}),
        (["amd-zen3/*"], {"amd-zen3/torch-bf16", "amd-zen3/ort-fp32"}),
        (["nvidia-*/*", "ort-*"], {"nvidia-h100-pcie/torch-bf16", "amd-zen3/ort-fp32"}),
        (["amd-zen3"], set()),  # a software of that name, on any hardware
        (["AMD-zen3/*"], set()),
        ([], set()),
    ],
)
def test_globs_say_which_platforms_count(tmp_path: Path, globs: list[str], found: set[str]) -> None:
    for hardware, software in (
        ("amd-zen3", "torch-bf16"),
        ("amd-zen3", "ort-fp32"),
        ("nvidia-h100-pcie", "torch-bf16"),
    ):
        make(tmp_path, software, hardware=hardware)
    shutil.copytree(tmp_path / "amd-zen3", tmp_path / ".amd-zen3.tmp")
    (tmp_path / "amd-zen3.dvc").write_text("")
    assert in_use(tmp_path, globs) == found


def test_signatures_in_use_are_read_whatever_versions_answered(tmp_path: Path) -> None:
    make(tmp_path, "torch-bf16", hardware="amd-zen3")
    make(tmp_path, "torch-bf16", hardware="nvidia-h100-pcie")
    found = signatures_of(tmp_path, "llama", "w")
    assert [s.header.placed.id for s in found] == ["amd-zen3/torch-bf16", "nvidia-h100-pcie/torch-bf16"]
    assert [s.header.facts["version_torch"] for s in found] == ["2.13.0+cpu", "2.12.0"]
    (one,) = signatures_of(tmp_path, "llama", "w", {"amd-zen3/torch-bf16"})
    assert one.header.hardware.id == "amd-zen3"
    with pytest.raises(DataError, match=r"params\.yaml's `use` matches, but there is none"):
        signatures_of(tmp_path, "llama", "w", {"amd-zen3/ort-fp32"})
    with pytest.raises(DataError, match="must answer for weights v, but it answers for w"):
        signatures_of(tmp_path, "llama", "v")


def test_a_signature_in_the_folder_of_another_platform_is_refused_and_both_are_named(tmp_path: Path) -> None:
    make(tmp_path, at=signature_path(tmp_path, "amd-zen3", "torch-bf16", "llama", "text", "b1"))
    with pytest.raises(
        DataError, match="signature of amd-zen3/torch-bf16, but it is one of nvidia-h100-pcie/h100-bf16"
    ):
        signatures_of(tmp_path, "llama", "w")
    with pytest.raises(DataError, match="there is none"):  # what is not in use is not looked at
        signatures_of(tmp_path, "llama", "w", {"nvidia-h100-pcie/h100-bf16"})


# ---------------------------------------------------------------- those that were made elsewhere


def test_files_arrive_bit_for_bit_under_the_hardware_of_their_header(checkout: Path, tmp_path: Path) -> None:
    original = make(tmp_path, at=tmp_path / "usb" / "any" / "name.parquet")
    there = make(tmp_path, "torch-bf16", hardware="amd-zen3", at=tmp_path / "usb" / "torch-bf16" / "x.parquet")
    added = store.add(tmp_path / "usb", root=checkout, versioned=False)
    assert list(added) == ["amd-zen3", "nvidia-h100-pcie"]
    (copy,), (other,) = added["nvidia-h100-pcie"], added["amd-zen3"]
    assert copy == signature_path(checkout / store.STORE, "nvidia-h100-pcie", "h100-bf16", "llama", "text", "b1")
    assert copy.read_bytes() == original.read_bytes() and other.read_bytes() == there.read_bytes()
    assert list(iter_store(checkout / store.STORE)) == [other, copy]


def test_a_second_delivery_merges_and_replaces(checkout: Path, tmp_path: Path) -> None:
    make(tmp_path / "one", nuisance="b1", value=-1.0)
    make(tmp_path / "one", "a-third")
    make(tmp_path / "two", nuisance="b1", value=-2.0)
    make(tmp_path / "two", nuisance="b8")
    store.add(tmp_path / "one", root=checkout, versioned=False)
    files = store.add(tmp_path / "two", root=checkout, versioned=False)["nvidia-h100-pcie"]
    assert [f.name for f in files] == ["text.b1.parquet", "text.b8.parquet"]
    assert read_signature(files[0]).topk_logprobs[0, 0] == -2.0
    assert len(list(iter_store(checkout / store.STORE))) == 3


def test_one_bad_file_and_nothing_is_added(checkout: Path, tmp_path: Path) -> None:
    make(tmp_path / "usb", platform="a100-bf16")
    make(tmp_path / "usb").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="must be a signature"):
        store.add(tmp_path / "usb", root=checkout, versioned=False)
    assert not (checkout / "data").exists()


@pytest.mark.parametrize("where", [{"nuisance": "../../b1"}, {"probe_set": "a/b"}, {"model": ".."}, {"probe_set": 3}])
def test_names_that_are_no_folders_of_the_store_are_refused(
    checkout: Path, tmp_path: Path, where: dict[str, Any]
) -> None:
    make(tmp_path, at=tmp_path / "usb" / "x.parquet", **where)
    with pytest.raises(DataError, match="must name things that can be folders"):
        store.add(tmp_path / "usb", root=checkout, versioned=False)
    assert not (checkout / "data").exists()


def test_facts_that_are_no_words_are_one_clear_line(checkout: Path, tmp_path: Path) -> None:
    facts = {"cpu_vendor": "AuthenticAMD", "cpu_family_model_stepping": 25}
    make(tmp_path, at=tmp_path / "usb" / "x.parquet", facts=facts)
    with pytest.raises(DataError, match="must say what answered"):
        store.add(tmp_path / "usb", root=checkout, versioned=False)


def test_a_folder_without_signatures_is_one_clear_line(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold signatures"):
        store.add(tmp_path / "empty", root=checkout)
    with pytest.raises(DataError, match="must hold a folder of amd-zen3"):
        store.track("amd-zen3", checkout)


# ---------------------------------------------------------------- what a dataset says of itself


def test_facts_are_those_of_the_headers(tmp_path: Path) -> None:
    make(tmp_path, "torch-bf16", "b16", hardware="amd-zen3", created="2026-11-25T00:00:00+00:00")
    make(tmp_path, "torch-bf16", hardware="amd-zen3", model="qwen3")
    make(tmp_path, "torch-bf16", hardware="amd-zen3")
    newer = {**ZEN3, "version_torch": "2.14.0+cpu"}
    make(tmp_path, Platform("ort", "onnx", "emulated"), hardware="amd-zen3", facts=newer)
    (found,) = datasets.listing(tmp_path)
    assert (found.hardware, found.files, found.here, found.versioned) == ("amd-zen3", 4, 4, False)
    assert found.meta["hardware"]["id"] == "amd-zen3" and found.meta["hardware"]["features"] == FLAGS.split()
    assert found.meta["collected"] == ["2026-11-24", "2026-11-25"]
    assert found.meta["provenance"] == {"emulated": 1, "real": 1}
    assert found.software["torch-bf16"]["models"] == ["llama", "qwen3"]
    assert found.software["torch-bf16"]["classes"] == ["b1", "b16"]
    assert [found.software[name]["environments"] for name in ("torch-bf16", "ort")] == [[0], [1]]
    assert found.meta["environments"][0] == {"python": "3.11.7", "torch": "2.13.0+cpu"}
    assert found.versions() == {"torch": ["2.13.0+cpu", "2.14.0+cpu"]}
    with pytest.raises(UnknownName, match="hardware must be one of amd-zen3, but got 'amd-zen4'"):
        datasets.named(tmp_path, "amd-zen4")


@pytest.fixture
def tracked(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout under git and DVC, with a remote inside it as the project has, that holds one dataset."""
    make(tmp_path / "usb")
    monkeypatch.chdir(checkout)
    shutil.copy(ROOT / ".gitignore", checkout)
    shutil.copy(ROOT / ".dvcignore", checkout)
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("dvc", "remote", "add", "-q", "-d", "shipped", "data/remote")
    assert "nvidia-h100-pcie: 1 signatures" in hspi("add", str(tmp_path / "usb")).output
    return checkout


def run(*command: str) -> str:
    tool = [sys.executable, "-m", "dvc", *command[1:]] if command[0] == "dvc" else list(command)
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def hspi(*words: str) -> Result:
    return CliRunner().invoke(main, ["signatures", *words])


def written(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((root / "data/signatures/nvidia-h100-pcie.dvc").read_text()))


def test_the_command_versions_them_with_dvc_and_says_what_is_in_them(tracked: Path, tmp_path: Path) -> None:
    assert "md5" in written(tracked)["outs"][0] and written(tracked)["meta"]["files"] == 1
    assert written(tracked)["desc"] == "NVIDIA H100 PCIe: 1 platforms (1 real) on llama"
    make(tmp_path / "more", nuisance="b8")  # DVC's own copy may be read-only or linked: merging must still work
    assert "1 signatures" in hspi("add", str(tmp_path / "more")).output
    assert written(tracked)["outs"][0]["nfiles"] == 2 and written(tracked)["meta"]["files"] == 2
    assert "data/signatures/nvidia-h100-pcie.dvc" in run("git", "status", "--short", "-uall")
    assert ".parquet" not in run("git", "status", "--short", "-uall")
    assert run("dvc", "status").split()[-3:] == ["up", "to", "date."]


def test_a_description_that_somebody_typed_stays_and_facts_are_made_again(tracked: Path, tmp_path: Path) -> None:
    path = tracked / "data/signatures/nvidia-h100-pcie.dvc"
    path.write_text(path.read_text().replace("desc: 'NVIDIA H100 PCIe: 1 platforms", "desc: 'The one in Oslo"))
    typed = written(tracked)["desc"]
    assert typed.startswith("The one in Oslo")
    make(tracked / store.STORE, "another")
    assert store.track("nvidia-h100-pcie") == store.STORE / "nvidia-h100-pcie.dvc"
    assert written(tracked)["desc"] == typed and set(written(tracked)["meta"]["software"]) == {"h100-bf16", "another"}


def test_what_was_collected_here_is_versioned_without_naming_a_folder(tracked: Path) -> None:
    make(tracked / store.STORE, "torch-bf16", hardware="amd-zen3")
    make(tracked / store.STORE, "another")
    shown = hspi("add").output.splitlines()
    assert shown == [
        "amd-zen3: 1 signatures, data/signatures/amd-zen3.dvc",
        "nvidia-h100-pcie: 2 signatures, data/signatures/nvidia-h100-pcie.dvc",
    ]
    assert {d.hardware: (d.files, d.versioned) for d in datasets.listing(store.STORE)} == {
        "amd-zen3": (1, True),
        "nvidia-h100-pcie": (2, True),
    }
    assert hspi("add", "--no-dvc").exit_code == 2


def test_collecting_extends_a_dataset_that_was_not_pulled(tracked: Path, tmp_path: Path) -> None:
    """As in a fresh clone: the dataset is known by its .dvc file alone, and new signatures lie in its folder."""
    run("dvc", "push", "-q")
    shutil.rmtree(tracked / store.STORE / "nvidia-h100-pcie")
    shutil.rmtree(tracked / ".dvc" / "cache")
    (before,) = datasets.listing(tracked / store.STORE)
    assert (before.files, before.here, list(before.software)) == (1, 0, ["h100-bf16"])
    make(tracked / store.STORE, "another")
    store.track("nvidia-h100-pcie", tracked)
    (after,) = datasets.listing(tracked / store.STORE)
    assert (after.files, after.here, list(after.software)) == (2, 2, ["another", "h100-bf16"])
    assert [p.name for p in (tracked / store.STORE).iterdir() if p.is_dir()] == ["nvidia-h100-pcie"]


def test_a_dataset_that_cannot_be_pulled_is_not_cut_short(tracked: Path, tmp_path: Path) -> None:
    shutil.rmtree(tracked / store.STORE / "nvidia-h100-pcie")
    shutil.rmtree(tracked / ".dvc" / "cache")
    new, before = make(tracked / store.STORE, "another"), written(tracked)
    with pytest.raises(DataError, match=r"`dvc pull data/signatures/nvidia-h100-pcie\.dvc` must bring"):
        store.track("nvidia-h100-pcie", tracked)
    assert new.exists() and written(tracked) == before


# ---------------------------------------------------------------- hspi signatures list, show


def test_datasets_are_listed_for_people_and_for_machines_pulled_or_not(tracked: Path) -> None:
    shutil.rmtree(tracked / store.STORE / "nvidia-h100-pcie")
    make(tracked / store.STORE, "torch-bf16", hardware="amd-zen3")
    rows = {row["hardware"]: row for row in json.loads(hspi("list", "--json").output)}
    assert {name: (row["files"], row["here"], row["versioned"]) for name, row in rows.items()} == {
        "amd-zen3": (1, 1, False),
        "nvidia-h100-pcie": (1, 0, True),
    }
    assert rows["nvidia-h100-pcie"]["versions"] == {"torch": ["2.12.0"], "vllm": ["0.32.0"]}
    head, zen3, h100 = hspi("list").output.splitlines()[:3]
    assert head.split()[:2] == ["hardware", "platforms"]
    assert zen3.startswith("amd-zen3") and "not versioned" in zen3
    assert h100.startswith("nvidia-h100-pcie") and "not pulled" in h100 and "torch 2.12.0" in h100


def test_one_dataset_is_shown_with_its_software(tracked: Path) -> None:
    shutil.rmtree(tracked / store.STORE / "nvidia-h100-pcie")
    shown = hspi("show", "nvidia-h100-pcie").output
    assert "NVIDIA H100 PCIe" in shown and "h100-bf16" in shown and "vllm 0.32.0" in shown and "b1" in shown
    one = json.loads(hspi("show", "nvidia-h100-pcie/h100-bf16", "--json").output)
    assert list(one["software"]) == ["h100-bf16"] and one["software"]["h100-bf16"]["classes"] == ["b1"]
    for wrong in ("nvidia-h100-pcie/else", "amd-zen4"):
        result = hspi("show", wrong)
        assert result.exit_code == 2 and "must be one of" in result.stderr


def test_a_store_without_datasets_says_so(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    assert json.loads(hspi("list", "--json").output) == []
    assert hspi("list").exit_code == 0
