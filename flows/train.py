"""Features to a tuned and trained detector.

python flows/train.py
"""

from __future__ import annotations

from steps import flow, repro


@flow(name="train")
def train() -> None:
    """The search, which goes on where it stopped, then the detector with what it found."""
    repro("train")


if __name__ == "__main__":
    train()
