"""An endpoint audited again and again, on a schedule: its history in MLflow, an event when its class changes.

python flows/monitor.py --base-url URL --model NAME --weights ZOO_ID [any option of `hspi monitor`]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from hspi import tracking
from hspi.audits.run import Request
from hspi.errors import EndpointError, HspiError
from hspi.history import FAILED
from hspi.monitor.check import watch
from steps import failed_with, flow, options_of

CHANGED = "hspi.class-changed"
COLUMNS = ("time", "outcome", "answer", "alert", "claim_p_value", "requests", "output_tokens", "news")
LAST = 50  # audits that the table shows


class ClassChanged(HspiError):
    """Another platform answers than before; automations see the event, people the failed run."""


class ClaimContradicted(HspiError):
    """The class did not change, and is not what is claimed."""


@task(
    task_run_name="hspi monitor",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[60, 300],
    retry_condition_fn=failed_with(EndpointError),
)
def check(request: Request, root: Path | None) -> dict[str, Any]:
    """What the next audit found, recorded. Raises EndpointError where the endpoint failed: Prefect tries again."""
    found = watch(request, root, retries=0, webhook=os.environ.get("HSPI_WEBHOOK"), say=get_run_logger().info)
    if found.entry.outcome == FAILED:
        raise EndpointError(f"the endpoint must answer, but: {found.entry.why}")
    return found.to_dict()


def tell(entry: dict[str, Any]) -> None:
    """The event that automations react to; its resource is the history, so that one endpoint can be chosen."""
    resource = {
        "prefect.resource.id": f"hspi.endpoint.{entry['history']}",
        "prefect.resource.name": f"{entry['served']} at {entry['endpoint']}",
        "hspi.endpoint": entry["endpoint"],
        "hspi.served": entry["served"],
        "hspi.before": entry["before"],
        "hspi.answer": entry["answer"],
    }
    emit_event(CHANGED, resource=resource, payload=entry)


def show_history(entry: dict[str, Any]) -> None:
    """The endpoint's last audits, the newest first, as a table of this run."""
    entries = tracking.read_history(entry["history"])
    rows = [{c: getattr(e, c) for c in COLUMNS} for e in reversed(entries)][:LAST]
    create_table_artifact(
        key=f"history-{entry['history']}", table=rows, description=f"{entry['served']} at {entry['endpoint']}"
    )


@flow(name="monitor", flow_run_name="{model} at {base_url}")
def monitor(
    base_url: str,
    model: str,
    weights: str,
    claim: str | None = None,
    claim_format: str | None = None,
    alpha: float = 0.0001,
    out: str | None = None,
    options: dict[str, Any] | None = None,
) -> str:
    """Audit an endpoint and compare with the audits before.

    A change of class emits the event `hspi.class-changed` and fails the run; so does a contradicted claim, without the
    event. A failed endpoint is recorded, tried again twice, then fails the run. The key is OPENAI_API_KEY and the
    webhook HSPI_WEBHOOK in the worker's environment; neither is a parameter, for Prefect keeps those.

    Args:
        base_url: URL of the endpoint up to /v1.
        model: Name under which it serves the model.
        weights: Zoo id, path or hub id of the weights that are said to be served.
        claim: Platform id that the provider claims; without it, the class of before.
        claim_format: Number format, where that is all that is claimed.
        alpha: False alarms of one audit at most. Over n audits n · alpha: hourly for a year, 0.0001 makes 0.9.
        out: Folder of the history.
        options: Any more of `hspi monitor`, for example {"max_tokens": 200}.

    Returns the outcome: consistent, identified, unknown or inconclusive.
    """
    request = Request(
        base_url=base_url, served=model, weights=weights, claim=claim, claim_format=claim_format, alpha=alpha,
        **(options or {}),
    )  # fmt: skip
    entry = check(request, Path(out) if out else None)
    get_run_logger().info("%s: %s", entry["outcome"], entry["news"] or entry["why"])
    if entry["alert"]:
        tell(entry)
    show_history(entry)
    if entry["alert"]:
        raise ClassChanged(f"the class must stay as it was, but {entry['news']}")
    if entry["outcome"] == "contradicted":
        raise ClaimContradicted(f"the endpoint must serve {entry['claim']}, but {entry['why']}")
    return str(entry["outcome"])


if __name__ == "__main__":
    monitor(**options_of("monitor", "out"))
