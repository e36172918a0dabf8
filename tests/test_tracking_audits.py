"""An audit as a run in a real store."""

from __future__ import annotations

from pathlib import Path

import pytest

from hspi import tracking
from misbehaving import Misbehaving, serving
from test_audits_run import KEY, audit


@pytest.mark.slow
def test_an_audit_is_one_run_with_its_verdict_and_no_key(tmp_path: Path) -> None:
    with serving(Misbehaving("bf16", faults=("echo-key",), rate=0.3)) as server:
        found = audit(server, tmp_path / "a", "fp32")
    first = tracking.log_audit(tmp_path / "a", root=tmp_path)
    assert tracking.log_audit(tmp_path / "a", root=tmp_path) == first
    with tracking.store.open_store(tmp_path) as client:
        run = client.get_run(first)
        names = {f.path for f in client.list_artifacts(first)}
    assert run.data.tags["hspi.outcome"] == "contradicted" == found.outcome
    assert run.data.params["claim"] == "fp32" and run.data.metrics["requests"] == found.requests
    assert {"verdict.json", "report.html", "answers.jsonl", "manifest.json"} <= names
    leaks = [f for f in (tmp_path / "mlruns").rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    assert not leaks
