"""Every error that hspi raises on purpose, and the codes that a command ends with: of errors and of verdicts.

HspiError                    70  anything of ours that has no better class
├── ConfigError               2  params.yaml, an option or an identifier is not usable
│   └── UnknownName           2  a platform, model, probe set or detector that does not exist
├── PlatformError             2  this machine or process cannot run the platform asked for
│   └── MissingExtra          2  the engine is not installed; the message holds the install command
├── ModelError                2  weights or tokenizer cannot be loaded
├── DataError                 2  a file is not what its schema says (signature, feature, report)
└── EndpointError             4  a server did not answer as its protocol demands
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command ends with. 1 is never an error: it says that a claim is contradicted."""

    DONE = 0  # or the claim is consistent, or the platform identified
    CONTRADICTED = 1
    MISUSED = 2  # usage, configuration or data; the command-line library's own code for it
    UNDECIDED = 3  # inconclusive or unknown
    ENDPOINT = 4
    INTERNAL = 70


class HspiError(Exception):
    """Base of the tree. The message is one line: what must hold, and what came."""

    exit_code = Exit.INTERNAL


class ConfigError(HspiError):
    exit_code = Exit.MISUSED


class UnknownName(ConfigError):
    """A name that is in no catalogue."""

    def __init__(self, kind: str, name: str, known: object) -> None:
        names = ", ".join(sorted(str(k) for k in known))  # type: ignore[attr-defined]
        super().__init__(f"{kind} must be one of {names}, but got {name!r}")


class PlatformError(HspiError):
    exit_code = Exit.MISUSED


class MissingExtra(PlatformError):
    """An engine whose package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"package {package!r} must be installed for this engine, but it is not: run  pip install 'hspi[{extra}]'"
        )


class ModelError(HspiError):
    exit_code = Exit.MISUSED


class DataError(HspiError):
    exit_code = Exit.MISUSED


class EndpointError(HspiError):
    exit_code = Exit.ENDPOINT
