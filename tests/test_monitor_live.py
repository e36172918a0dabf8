"""The server behind a URL is really swapped: platforms of the zoo, and Prefect's server, worker and automation."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.request import Request, urlopen

import pytest

from conftest import Tree, free_port
from hspi.platforms.catalogue import get

ALPHA = "0.05"  # the probe sets of the smoke tree are small


def served(tree: Tree, platform: str, port: int) -> AbstractContextManager[None]:
    command = ("hspi", "serve", "--platform", platform, "--model", "llama", "--port", str(port))
    return tree.serving(*command, ready=f"http://127.0.0.1:{port}/health")


def asked(url: str, body: dict[str, Any]) -> Any:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as response:
        return json.load(response)


def until(found: Any, seconds: float = 60) -> Any:
    """What `found` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (got := found()):
        assert time.monotonic() < deadline, "it must come, but it did not"
        time.sleep(0.5)
    return got


def verb(tree: Tree, *words: str) -> tuple[int, dict[str, Any]]:
    command = ["hspi", "monitor", *words, "--json", "--retries", "0"]
    done = subprocess.run(command, cwd=tree.path, env=tree.environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_swapped_server_is_an_alert_an_event_and_a_second_audit(smoke: Tree, orchestrator: str) -> None:
    port, api = free_port(), orchestrator
    url = f"http://127.0.0.1:{port}/v1"
    words = ("--base-url", url, "--model", "llama", "--weights", "llama", "--alpha", ALPHA)
    with served(smoke, "torch-bf16", port):
        code, first = verb(smoke, *words)
    assert (code, first["outcome"]) == (0, "identified") and first["answer"].endswith("/torch-bf16")

    with served(smoke, "torch-fp32", port):
        smoke.run("prefect", "--no-prompt", "deploy", "-n", "audit", "-n", "monitor")
        smoke.run("python", "flows/automation.py")
        parameters = [f"base_url={url}", "model=llama", "weights=llama", f"alpha={ALPHA}"]
        asking = [word for p in parameters for word in ("--param", p)]
        smoke.run("prefect", "deployment", "run", "monitor/monitor", *asking)
        with smoke.serving("prefect", "worker", "start", "--pool", "hspi-cpu", ready=f"{api}/health"):

            def ended(flow: str) -> Any:
                runs = asked(f"{api}/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
                return [r for r in runs if r["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]

            (run,) = until(lambda: ended("monitor"), 500)
            (again,) = until(lambda: ended("audit"), 500)
        events = asked(f"{api}/events/filter", {"filter": {"event": {"name": ["hspi.class-changed"]}}})["events"]
        artifacts = asked(f"{api}/artifacts/filter", {})
    assert run["state"]["type"] == "FAILED" and "torch-bf16 answered" in run["state"]["message"]
    (event,) = events
    fits = event["payload"]["fits"]  # with whatever fp32 cannot be told from it on this CPU
    assert event["resource"]["hspi.before"] == first["answer"]
    assert "torch-fp32" in {name.rpartition("/")[2] for name in fits}
    assert {get(name.rpartition("/")[2]).dtype for name in fits} == {"fp32"}
    assert again["state"]["type"] == "COMPLETED", again["state"]
    assert {n: again["parameters"][n] for n in ("base_url", "model", "weights")} == {
        "base_url": url, "model": "llama", "weights": "llama",
    }  # fmt: skip
    assert f"history-{first['history']}" in {a["key"] for a in artifacts}

    shown = json.loads(smoke.run("hspi", "history", "--base-url", url, "--model", "llama", "--json"))
    assert [(e["outcome"], e["alert"]) for e in shown] == [("identified", False), ("contradicted", True)]
