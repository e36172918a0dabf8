"""An endpoint held against its claim, on a schedule or by hand.

python flows/audit.py --base-url URL --model NAME --weights ZOO_ID [any option of `hspi audit`]
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from hspi.errors import EndpointError, HspiError
from steps import flow

OUTCOMES = {0: "consistent", 1: "contradicted", 3: "inconclusive"}
ENDPOINT_FAILED = 4


@task(task_run_name="hspi audit", cache_policy=NO_CACHE)
def run_audit(options: list[str]) -> int:
    """The verb's exit code. Raises EndpointError where the endpoint failed; the same options go on from there."""
    code = subprocess.run([sys.executable, "-m", "hspi", "audit", *options], check=False).returncode
    if code == ENDPOINT_FAILED:
        raise EndpointError("the endpoint must answer, but it failed; the next run goes on where this one stopped")
    if code not in OUTCOMES:
        raise HspiError(f"`hspi audit` must end with a verdict, but it ended with {code}")
    return code


@flow(name="audit")
def audit(options: list[str]) -> str:
    """One audit. Returns its outcome; a contradicted claim fails the flow, so that automations see it."""
    outcome = OUTCOMES[run_audit(options)]
    if outcome == "contradicted":
        raise HspiError("the endpoint must serve what is claimed, but the claim is contradicted")
    return outcome


def main(arguments: list[Any]) -> None:
    audit([str(a) for a in arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
