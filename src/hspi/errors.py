"""Every error that hspi raises on purpose, and the exit code that the command line gives it.

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


class HspiError(Exception):
    """Base of the tree. The message is one line: what must hold, and what came."""

    exit_code = 70


class ConfigError(HspiError):
    exit_code = 2


class UnknownName(ConfigError):
    """A name that is in no catalogue."""

    def __init__(self, kind: str, name: str, known: object) -> None:
        names = ", ".join(sorted(str(k) for k in known))  # type: ignore[attr-defined]
        super().__init__(f"{kind} must be one of {names}, but got {name!r}")


class PlatformError(HspiError):
    exit_code = 2


class MissingExtra(PlatformError):
    """An engine whose package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"package {package!r} must be installed for this engine, but it is not: run  pip install 'hspi[{extra}]'"
        )


class ModelError(HspiError):
    exit_code = 2


class DataError(HspiError):
    exit_code = 2


class EndpointError(HspiError):
    exit_code = 4
