"""hspi tells which hardware and software platform serves a language model.

Implements and extends *Hardware and Software Platform Inference* (Zhang et al., arXiv 2411.05197). Whatever the command
line does, this face does too: `collect` makes signatures, `judge` says which platform a signature file comes from,
`audit` holds an endpoint against its claim, `whoami` says which hardware this machine computes like. docs/python.md has
an example of each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hspi.audits.run import audit as audit
    from hspi.identity import whoami as whoami
    from hspi.judging import judge as judge
    from hspi.platforms.record import Platform as Platform
    from hspi.signatures.collect import collect as collect
    from hspi.verdict import Verdict as Verdict

__version__ = "0.1.0"

# Where each stands; imported when it is first asked for, because torch and XGBoost take seconds.
_FACE = {
    "Platform": "hspi.platforms.record",
    "Verdict": "hspi.verdict",
    "audit": "hspi.audits.run",
    "collect": "hspi.signatures.collect",
    "judge": "hspi.judging",
    "whoami": "hspi.identity",
}
__all__ = ["Platform", "Verdict", "audit", "collect", "judge", "whoami"]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'hspi' has no attribute {name!r}")
    from hspi.quiet import be_quiet

    be_quiet()  # as the command line does, before heavy packages are imported
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
