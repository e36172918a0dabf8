"""What `make demo` does before the pipeline: signatures of this machine, and the part of the datasets to train on.

    python scripts/demo.py

`use` in params.yaml becomes `demo.use`. So the checkout says of itself what its detector and its report were made of,
and DVC knows it as it knows any other change of a parameter; `git checkout params.yaml dvc.lock` takes it back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hspi import params
from hspi.cli import main
from hspi.errors import ConfigError
from hspi.files import write_text
from hspi.signatures import store
from hspi.signatures.side_by_side import hardware_of_here, runnable

PARAMS = Path("params.yaml")


def use(globs: Sequence[str], path: Path = PARAMS) -> bool:
    """Have params.yaml use these platforms alone, its other lines as they are. Returns whether that was new.

    Raises ConfigError where `use` is not written on one line.
    """
    before = path.read_text("utf-8")
    if params.load(path).use == list(globs):
        return False
    quoted = ", ".join(f'"{glob}"' for glob in globs)
    after, times = re.subn(r"^use: \[.*\]$", f"use: [{quoted}]", before, flags=re.M)
    if times != 1:
        raise ConfigError(f"{path} must hold one line `use: [...]`, but it holds {times}")
    write_text(path, after)
    return True


def prepare() -> None:
    demo = params.load(PARAMS).demo
    if use(demo.use):
        print(f"{PARAMS}: `use` is the demo's part of the datasets now; `git checkout {PARAMS}` takes it back")
    here = runnable(demo.collect, skip_unavailable=True)
    words = [word for platform in demo.collect for word in ("--platform", platform)]
    if code := main(["collect", *words, "--skip-unavailable"], standalone_mode=False):
        raise SystemExit(code)
    for hardware in hardware_of_here(here):
        print(f"{hardware}: versioned as {store.track(hardware)}")


if __name__ == "__main__":
    prepare()
