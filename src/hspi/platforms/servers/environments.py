"""Environments of their own for engines that do not fit beside hspi: where they stand.

scripts/environments.py makes them.
"""

from __future__ import annotations

import os
from pathlib import Path

from hspi.files import read_json, root

ENVIRONMENTS = {"vllm": "vllm", "llama.cpp": "llama-cpp"}  # engine → name of its environment


def environment(engine: str) -> Path:
    """Where the engine's environment stands, or would: below HSPI_ENVS, else `.envs` of the project."""
    return Path(os.environ.get("HSPI_ENVS") or root() / ".envs") / ENVIRONMENTS[engine]


def stands(engine: str) -> bool:
    """Whether the engine's environment was made to its end; true for engines that need none."""
    return engine not in ENVIRONMENTS or (environment(engine) / "hspi.json").is_file()


def why_not(engine: str) -> str:
    """One line: what is missing, and the command that makes it."""
    return f"needs the environment {environment(engine)}, which does not stand: run  make {ENVIRONMENTS[engine]}"


def versions(engine: str) -> dict[str, str]:
    """Distributions of the environment whose versions decide an answer."""
    return dict(read_json(environment(engine) / "hspi.json")["versions"])
