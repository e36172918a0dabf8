"""A history of real audits of real servers, one of them swapped behind its URL; the store is a real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

import audit_world as world
from conftest import free_port
from hspi import tracking
from hspi.audits.run import Audit, Request, start
from hspi.cli import main
from hspi.client import Endpoint, Retry
from hspi.errors import ConfigError, EndpointError, HspiError
from hspi.history import Entry
from hspi.monitor import check
from hspi.monitor.webhook import checked, notify
from misbehaving import Misbehaving, serving

QUICK = Retry(attempts=3, answers=3, first=0.001, longest=0.02)
SECRET = "token-never-to-be-seen"


class Watch:
    """Monitors one URL of the small world, an hour between the audits."""

    def __init__(self, root: Path, url: str, alpha: float = 0.01) -> None:
        self.root, self.hour, self.alpha = root, 0, alpha
        self.target = check.Target(url, "toy", "0" * 64)
        self.said: list[str] = []
        self.claims: list[str | None] = []

    def audit(self, folder: Path, claim: str | None) -> Audit:
        self.claims.append(claim)
        supply = world.Supply(world.material(self.target.base_url, claim, alpha=self.alpha))
        endpoint = Endpoint(self.target.base_url, "", 4, QUICK, deadline=0.8)
        return start(supply.request(), folder, supply=supply, endpoint=endpoint, reach=True)

    def __call__(self, claim: str | None = None, webhook: str | None = None) -> Entry:
        self.hour += 1
        at = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(hours=self.hour)
        audits = self.root / "audits"
        return check.check(
            self.target, self.audit, audits, claim=claim, webhook=webhook, say=self.said.append,
            now=lambda: at, store=self.root,
        )  # fmt: skip

    def runs(self) -> list[Any]:
        with tracking.store.open_store(self.root) as client:
            experiment = client.get_experiment_by_name("hspi-audits").experiment_id
            return list(reversed(client.search_runs([experiment])))


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> Path:
    shutil.copytree(migrated / "mlruns", tmp_path / "mlruns")
    return tmp_path


@contextmanager
def listening(*codes: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook that answers with these codes, the last of them for ever: (its URL, what it was sent)."""
    got: list[dict[str, Any]] = []
    left = list(codes)

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            code = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(code)
            if code in (301, 302, 307):
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{SECRET}", got
        server.shutdown()


# ---------------------------------------------------------------- webhook


def test_a_webhook_is_tried_again_for_what_passes_and_its_url_is_never_said() -> None:
    with listening(500, 429, 200) as (url, got):
        assert notify(url, {"text": "x"}, pause=0) == "sent to 127.0.0.1"
    assert got == [{"text": "x"}] * 3
    for code, tries in ((404, 1), (302, 1), (503, 3)):
        with listening(code) as (url, got):
            assert notify(url, {}, pause=0) == f"failed: 127.0.0.1 answered {code}"
        assert len(got) == tries
    said = notify(f"http://127.0.0.1:{free_port()}/{SECRET}", {}, pause=0)
    assert said.startswith("failed: 127.0.0.1") and SECRET not in said
    for bad in ("ftp://h/x", "no-url", "http://", f"http://[{SECRET}"):
        with pytest.raises(ConfigError) as caught:
            checked(bad)
        assert SECRET not in str(caught.value)


def test_a_silent_webhook_is_given_up() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        said = notify(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, seconds=0.2, pause=0)
    assert said.startswith("failed") and time.monotonic() - began < 5


# ---------------------------------------------------------------- histories


@pytest.mark.slow
def test_a_swap_behind_the_url_is_one_alert_and_all_else_is_none(store: Path) -> None:
    """bf16, gone, bf16 with foreign tokens (inconclusive), int8 from here on."""
    with serving(Misbehaving("bf16")) as first:
        watch, port = Watch(store, first.url), first.port
        found = [watch(), watch()]
    found.append(watch())
    with serving(Misbehaving("bf16", port=port, lasting="foreign-tokens")):
        found.append(watch())
    with listening(200) as (url, got), serving(Misbehaving("int8", port=port)):
        found += [watch(webhook=url), watch(webhook=url)]
    outcomes = ["identified", "consistent", "failed", "inconclusive", "contradicted", "consistent"]
    assert [e.outcome for e in found] == outcomes
    assert [e.alert for e in found] == [False] * 4 + [True, False]
    assert [e.exit_code for e in found] == [0, 0, 4, 3, 1, 0]
    assert watch.claims == [None, *["cpu/bf16"] * 4, "cpu/int8"], "the class of before is what is claimed"
    alert = found[4]
    assert "cpu/bf16 answered since" in alert.news and alert.news.endswith("cpu/int8 answers now")
    assert [g["answer"] for g in got] == ["cpu/int8"] and got[0]["before"] == "cpu/bf16" and "bf16" in got[0]["text"]
    assert tracking.read_history(watch.target.key, root=store) == found
    runs = watch.runs()
    assert [r.info.status for r in runs] == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "FINISHED", "FINISHED"]
    assert [r.data.tags["hspi.alert"] for r in runs] == ["false"] * 4 + ["true", "false"]
    assert runs[4].data.metrics["alert"] == 1 and runs[4].data.params["claim"] == "cpu/bf16"
    with tracking.store.open_store(store) as client:
        names = {f.path for f in client.list_artifacts(runs[-1].info.run_id)}
    assert {"history.png", "history.html", "entry.json", "verdict.json", "report.html"} <= names
    leaks = [f for f in store.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]
    assert not leaks


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1e-4, 1e-6])
def test_at_a_low_alpha_it_arms_on_an_honest_endpoint_and_tells_of_a_swap(store: Path, alpha: float) -> None:
    with serving(Misbehaving("bf16")) as first:
        watch, port = Watch(store, first.url, alpha), first.port
        found = [watch(), watch()]
    with serving(Misbehaving("int8", port=port)):
        found.append(watch())
    assert [e.outcome for e in found] == ["identified", "consistent", "contradicted"]
    assert [e.alert for e in found] == [False, False, True] and f"at alpha {alpha:g}" in found[2].news


def test_an_alpha_out_of_reach_is_refused_at_once_and_not_recorded(store: Path) -> None:
    with serving(Misbehaving("bf16")) as server:
        watch = Watch(store, server.url, 1e-40)
        with pytest.raises(ConfigError, match=r"alpha must be .* at least") as refused:
            watch()
    assert refused.value.exit_code == 2 and watch.claims == [None]
    assert not tracking.read_history(watch.target.key, root=store)


@pytest.mark.slow
def test_a_webhook_that_fails_hides_no_alert_and_is_called_again(store: Path) -> None:
    with serving(Misbehaving("bf16")) as first:
        watch, port = Watch(store, first.url), first.port
        watch()
    with serving(Misbehaving(lasting="wrong-model", port=port)):
        with listening(403) as (url, _):
            alert = watch(webhook=url)
        assert (alert.alert, alert.exit_code, alert.answer) == (True, 1, "unknown")
        assert alert.notified == "failed: 127.0.0.1 answered 403" and "not known" in alert.news
        with listening(200) as (url, got):
            again = watch(webhook=url)
    assert not again.alert and again.outcome == "unknown"
    assert [g["time"] for g in got] == [alert.time], "the alert that was not taken, and no other"
    assert [e.notified for e in tracking.read_history(watch.target.key, root=store)] == ["", "sent to 127.0.0.1", ""]


@pytest.mark.slow
def test_a_claim_that_never_held_is_contradicted_each_time_and_alerts_only_on_a_change(store: Path) -> None:
    with serving(Misbehaving("bf16")) as first:
        watch, port = Watch(store, first.url), first.port
        found = [watch("fp32"), watch("fp32")]
    with serving(Misbehaving("fp32", port=port)):
        found.append(watch("fp32"))
    assert [(e.outcome, e.alert, e.exit_code) for e in found] == [
        ("contradicted", False, 1), ("contradicted", False, 1), ("consistent", True, 1),
    ]  # fmt: skip


@pytest.mark.slow
def test_what_a_kill_left_is_gone_on_with_and_what_has_other_options_is_not(store: Path) -> None:
    with serving(Misbehaving("bf16")) as server:
        watch = Watch(store, server.url)
        left = store / "audits" / "20260102T003000Z"
        watch.audit(left, None)  # sealed, and killed before it was recorded
        asked = server.asked.copy()
        assert watch().folder == left.name and server.asked == asked, "no question was asked again"
        watch.audit(store / "audits" / "20260102T013000Z", "fp32")
        assert watch().folder == "20260102T020000Z"


def test_one_monitor_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from hspi.monitor.check import alone\n"
    code += "with alone(Path(sys.argv[1])): print('there', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout and other.stdout.readline() == "there\n"
        with pytest.raises(ConfigError, match="one monitor at a time"), check.alone(tmp_path):
            pass
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with check.alone(tmp_path):
        pass


def test_a_failed_endpoint_is_tried_again_and_a_mistake_is_not(tmp_path: Path) -> None:
    tried: list[str] = []
    said: list[str] = []

    def failing(kind: type[HspiError], times: int) -> check.Auditing:
        def audit(folder: Path, claim: str | None) -> Any:
            tried.append(kind.__name__)
            if len(tried) <= times:
                raise kind("the reason")
            return "done"

        return audit

    assert check.patient(failing(EndpointError, 2), 2, 0.0, said.append)(tmp_path, None) == "done"
    assert len(tried) == 3 and [s.split(":")[0] for s in said] == [
        "trying again in 0 s, 2 times at most", "trying again in 0 s, 1 times at most",
    ]  # fmt: skip
    for kind, retries in ((EndpointError, 1), (ConfigError, 5)):
        tried.clear()
        with pytest.raises(kind, match="the reason"):
            check.patient(failing(kind, 9), retries, 0.0, said.append)(tmp_path, None)
        assert len(tried) == (2 if kind is EndpointError else 1)


def test_an_entry_keeps_the_whole_claim() -> None:
    for claim, hardware, kept in (("bf16", None, "bf16"), ("bf16", "cpu", "cpu/bf16"), (None, "c*", "c*/*")):
        verdict = world.verdict_on(world.FORMULAS["cpu/bf16"], claim, claim_hardware=hardware)
        made = world.material("http://h", claim, claim_hardware=hardware)
        found = Audit(Path("f"), made, cast("Any", None), verdict)
        entry, candidates = check._concluded(Entry("2026-01-02T00:00:00+00:00", "f", "failed"), found)
        assert (entry.claim, entry.fits, entry.outcome) == (kept, ("cpu/bf16",), "consistent")
        assert candidates == sorted(world.FORMULAS)


# ---------------------------------------------------------------- the verb


def test_the_verb_takes_the_options_of_an_audit_that_make_sense() -> None:
    ours = {o for p in main.commands["monitor"].params for o in p.opts}
    assert {
        "--base-url",
        "--model",
        "--weights",
        "--claim",
        "--claim-hardware",
        "--alpha",
        "--max-tokens",
        "--detector",
    } <= ours
    assert {"--retries", "--webhook", "--out", "--json"} <= ours
    assert not {"--replay", "--dry-run", "--no-mlflow"} & ours
    refused = CliRunner().invoke(main, ["monitor", "--base-url", "http://127.0.0.1:1/v1"])
    assert refused.exit_code == 2 and "--weights are needed" in refused.output


@pytest.mark.slow
def test_a_mistake_in_the_request_is_one_error_and_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    asked = Request(base_url="http://127.0.0.1:1/v1", served="m", weights="llama", claim="torch-bf16", params="no.yaml")
    with pytest.raises(ConfigError, match=r"no\.yaml"):
        check.watch(asked, tmp_path / "a", say=said.append, store=tmp_path)
    assert not [line for line in said if line.startswith("trying again")]
