"""A trained detector to metrics, report and registry.

python flows/evaluate.py
"""

from __future__ import annotations

from steps import flow, publish_artifacts, repro


@flow(name="evaluate")
def evaluate() -> None:
    """The protocol, the report, the registry; then what people look at, as artefacts of this run."""
    repro("register")
    publish_artifacts()


if __name__ == "__main__":
    evaluate()
