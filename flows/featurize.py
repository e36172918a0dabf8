"""Signatures and float64 references to features.

python flows/featurize.py
"""

from __future__ import annotations

from steps import flow, repro


@flow(name="featurize")
def featurize() -> None:
    """The float64 references, then the evidence of every signature."""
    repro("featurize")


if __name__ == "__main__":
    featurize()
