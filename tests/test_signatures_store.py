"""Signatures that were made elsewhere, as real files; with DVC itself where it matters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hspi.cli import main
from hspi.errors import ConfigError, DataError
from hspi.platforms.record import Nuisance, Platform
from hspi.signatures import store
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header, read_signature
from hspi.signatures.store import iter_store, signature_path

PARAMS = """
models: [llama]
probes: {seed: 1, length: 4, sets: {text: {size: 2}}}
nuisances: [{name: b1}]
platforms: [torch-fp32]
"""


def make(folder: Path, platform: str = "h100-bf16", nuisance: str = "b1", value: float = -1.0) -> Path:
    header = Header(
        Platform(platform, "vllm", device="h100"), "llama", "w", "text", "p", Nuisance(nuisance), positions=1, top_k=2
    )
    path = signature_path(folder, platform, "llama", "text", nuisance)
    with Journal(path, header) as journal:
        rows = np.array([[[3, 4]], [[5, 6]]], np.int32), np.full((2, 1, 2), value, np.float32)
        journal.append(to_batch(journal.schema, np.arange(2), 4, *rows))
        return journal.finish()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    return root


def test_a_store_lists_finished_signatures_alone(tmp_path: Path) -> None:
    path = make(tmp_path, "p", "b2")
    assert path == tmp_path / "p" / "llama" / "text.b2.parquet"
    path.with_name("x.parquet.partial").write_bytes(b"")
    path.with_name("x.parquet.tmp").write_bytes(b"")
    assert list(iter_store(tmp_path)) == [path]
    assert signature_path(tmp_path, "p", "some/where/llama", "text", "b2") == path


def test_files_arrive_bit_for_bit_under_the_platform_of_their_header(checkout: Path, tmp_path: Path) -> None:
    original = make(tmp_path / "usb" / "any" / "depth")
    added = store.add(tmp_path / "usb", root=checkout, track=False)
    (copy,) = added["h100-bf16"]
    assert copy == signature_path(checkout / "data/signatures", "h100-bf16", "llama", "text", "b1")
    assert copy.read_bytes() == original.read_bytes()
    assert list(iter_store(checkout / "data/signatures")) == [copy]


def test_a_second_delivery_merges_and_replaces(checkout: Path, tmp_path: Path) -> None:
    make(tmp_path / "one", nuisance="b1", value=-1.0)
    make(tmp_path / "two", nuisance="b1", value=-2.0)
    make(tmp_path / "two", nuisance="b8")
    store.add(tmp_path / "one", root=checkout, track=False)
    files = store.add(tmp_path / "two", root=checkout, track=False)["h100-bf16"]
    assert [f.name for f in files] == ["text.b1.parquet", "text.b8.parquet"]
    assert read_signature(files[0]).topk_logprobs[0, 0] == -2.0


def test_one_bad_file_and_nothing_is_added(checkout: Path, tmp_path: Path) -> None:
    make(tmp_path / "usb", platform="a100-bf16")
    make(tmp_path / "usb").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="must be a signature"):
        store.add(tmp_path / "usb", root=checkout, track=False)
    assert not (checkout / "data").exists()


def test_a_folder_without_signatures_is_one_clear_line(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold signatures"):
        store.add(tmp_path / "empty", root=checkout)


def test_a_platform_that_is_collected_here_has_one_owner(checkout: Path, tmp_path: Path) -> None:
    make(tmp_path / "usb", platform="torch-fp32")
    with pytest.raises(ConfigError, match="torch-fp32"):
        store.add(tmp_path / "usb", root=checkout)
    assert not (checkout / "data").exists()


def test_the_command_versions_them_with_dvc(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "usb")
    monkeypatch.chdir(checkout)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True, capture_output=True)
    result = CliRunner().invoke(main, ["signatures", "add", str(tmp_path / "usb")])
    assert "h100-bf16: 1 signatures" in result.output
    assert "md5" in (checkout / "data/signatures/h100-bf16.dvc").read_text()
    make(tmp_path / "more", nuisance="b8")  # DVC's own copy may be read-only or linked: merging must still work
    assert "2 signatures" in CliRunner().invoke(main, ["signatures", "add", str(tmp_path / "more")]).output
