"""Signatures of many platforms, where their hardware is.

python flows/collect.py [PLATFORM ...]
"""

from __future__ import annotations

import sys

from steps import flow, platforms_of_params, pull, repro, side_by_side, unmapped


@flow(name="collect", task_runner=side_by_side())
def collect(platforms: list[str] | None = None) -> list[str]:
    """Collect the platforms named, or all of params.yaml, several at a time. Returns what was collected."""
    chosen = platforms or platforms_of_params()
    pull("data/zoo.dvc")
    repro.map([f"collect@{platform}" for platform in chosen], alone=unmapped(True)).result()
    return chosen


if __name__ == "__main__":
    collect(sys.argv[1:] or None)
