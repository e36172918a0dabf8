"""From platforms to a registered detector: every flow in its order.

python flows/all.py [PLATFORM ...]
"""

from __future__ import annotations

import sys

from collect import collect
from evaluate import evaluate
from featurize import featurize
from steps import flow
from train import train


@flow(name="pipeline")
def pipeline(platforms: list[str] | None = None) -> None:
    """Collect, featurize, train, evaluate. DVC leaves alone whatever is up to date."""
    collect(platforms)
    featurize()
    train()
    evaluate()


if __name__ == "__main__":
    pipeline(sys.argv[1:] or None)
