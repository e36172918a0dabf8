"""An endpoint held against its claim, on a schedule or by hand.

python flows/audit.py --base-url URL --model NAME --weights ZOO_ID [any option of `hspi audit`]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from hspi import tracking
from hspi.audits.run import Audit, Request, start
from hspi.errors import HspiError
from steps import flow, options_of


@task(task_run_name="hspi audit", cache_policy=NO_CACHE)
def run_audit(request: Request, folder: Path | None) -> Audit:
    """Raises EndpointError where the endpoint failed; the same request goes on from there."""
    found = start(request, folder, say=get_run_logger().info)
    tracking.log_audit(found.folder)
    return found


@flow(name="audit", flow_run_name="{model} at {base_url}")
def audit(
    base_url: str,
    model: str,
    weights: str,
    claim: str | None = None,
    claim_format: str | None = None,
    alpha: float = 0.01,
    out: str | None = None,
    options: dict[str, Any] | None = None,
) -> str:
    """One audit. A contradicted claim fails the flow, so that automations see it.

    Args:
        base_url: URL of the endpoint up to /v1.
        model: Name under which it serves the model.
        weights: Zoo id, path or hub id of the weights that are said to be served.
        claim: Platform id that the provider claims.
        claim_format: Number format, where that is all that is claimed.
        alpha: False alarms at most.
        out: Folder of the evidence.
        options: Any more of `hspi audit`, for example {"max_tokens": 200}.

    Returns the outcome: consistent, identified, unknown or inconclusive.
    """
    request = Request(
        base_url=base_url, served=model, weights=weights, claim=claim, claim_format=claim_format, alpha=alpha,
        **(options or {}),
    )  # fmt: skip
    verdict = run_audit(request, Path(out) if out else None).verdict
    assert verdict is not None, "not a dry run"
    if verdict.outcome == "contradicted":
        raise HspiError(f"the endpoint must serve what is claimed, but {verdict.why}")
    return verdict.outcome


if __name__ == "__main__":
    audit(**options_of("audit", "out"))
