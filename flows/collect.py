"""Signatures of many platforms, where their hardware is.

python flows/collect.py [PLATFORM ...]
"""

from __future__ import annotations

import sys

from hspi.signatures.side_by_side import hardware_of_here, runnable
from steps import collect_apart, demo_of_params, flow, pull, side_by_side, track


@flow(name="collect", task_runner=side_by_side())
def collect(platforms: list[str] | None = None) -> list[str]:
    """Collect the platforms named, or those of params.yaml's demo, several at a time, into this machine's dataset.

    What this machine cannot run is said and skipped; what is there already is not made again. Returns what ran here.
    """
    pull("data/zoo.dvc")
    here = runnable(platforms or demo_of_params(), skip_unavailable=True, say=print)
    collect_apart.map(here).result()
    for hardware in hardware_of_here(here):
        track(hardware)
    return here


if __name__ == "__main__":
    collect(sys.argv[1:] or None)
