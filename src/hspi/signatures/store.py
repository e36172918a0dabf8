"""The store: where signatures stand, which of them count, and how those that were made elsewhere join it.

Those are checked, copied whole and versioned by DVC.
"""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hspi.errors import ConfigError, DataError
from hspi.quiet import complaint

if TYPE_CHECKING:
    from hspi.signatures.schema import Signature

STORE = Path("data/signatures")  # of a checkout


def signature_path(root: str | Path, hardware: str, software: str, model: str, probe_set: str, nuisance: str) -> Path:
    """Where a signature stands in a store. Names are for people; programs read the header."""
    return Path(root) / hardware / software / Path(model).name / f"{probe_set}.{nuisance}.parquet"


def iter_store(root: str | Path) -> Iterator[Path]:
    """Every finished signature below a folder, in a stable order."""
    return iter(sorted(Path(root).glob("*/*/*/*.parquet")))


def in_use(root: str | Path, named: Sequence[str]) -> set[str]:
    """Platforms whose signatures count: those of params.yaml, and those that `hspi signatures add` brought.

    What an earlier params.yaml left in the store does not.
    """
    return {*named, *(path.stem for path in Path(root).glob("*.dvc"))}


def signatures_of(
    root: str | Path, model: str, weights_hash: str, platforms: Collection[str] | None = None
) -> list[Signature]:
    """Signatures of these weights in a store, of these platforms or of all.

    Raises DataError if one of that name has other weights, or if there is none.
    """
    from hspi.signatures.schema import read_header, read_signature

    found = []
    for path in iter_store(root):
        if platforms is not None and path.parent.parent.name not in platforms:
            continue
        header = read_header(path)
        if header.model != model:
            continue
        if header.weights_hash != weights_hash:
            raise DataError(
                f"{path} must answer for weights {weights_hash[:12]}, but it answers for {header.weights_hash[:12]}"
            )
        found.append(read_signature(path))
    if not found:
        raise DataError(f"{root} must hold signatures of {model!r}, but there is none: run `hspi collect`")
    return found


# ---------------------------------------------------------------- those that were made elsewhere


def add(folder: str | Path, *, root: str | Path = ".", track: bool = True) -> dict[str, list[Path]]:
    """Add every signature below `folder` to `data/signatures` of the checkout at `root`; `dvc add` each platform.

    All files are read whole before the first is copied, and a platform's folder appears only when it is complete.
    Signatures of a platform that was added before are merged into it; a file with the same model, probes and nuisance
    replaces the old one. Returns platform id → files in the store. `track=False` leaves DVC out.

    Raises DataError if there is no signature, or a file is not one; ConfigError if a platform is one that this
    pipeline collects itself (DVC lets one owner alone write a folder).
    """
    found = _read_all(Path(folder))
    root = Path(root)
    _refuse_own(found, root)
    added = {platform: _place(files, root / STORE, platform) for platform, files in sorted(found.items())}
    if track:
        _dvc_add([STORE / platform for platform in added], root)
    return added


def _read_all(folder: Path) -> dict[str, list[tuple[Path, Signature]]]:
    from hspi.signatures.schema import read_signature

    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise DataError(f"{folder} must hold signatures (*.parquet), but it holds none")
    found: dict[str, list[tuple[Path, Signature]]] = defaultdict(list)
    for path in paths:
        signature = read_signature(path)
        found[signature.header.platform.id].append((path, signature))
    return found


def _refuse_own(platforms: object, root: Path) -> None:
    from hspi import params

    own = set(params.load(root / "params.yaml").platforms) & set(platforms)  # type: ignore[call-overload]
    if own:
        raise ConfigError(
            f"platforms that are added must not be collected here too, but params.yaml lists {', '.join(sorted(own))}"
        )


def _place(files: list[tuple[Path, Signature]], store: Path, platform: str) -> list[Path]:
    store.mkdir(parents=True, exist_ok=True)
    final, fresh = store / platform, store / f".{platform}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(final, fresh) if final.exists() else fresh.mkdir()
    for path, signature in files:
        h = signature.header
        name = signature_path("", platform, h.model, h.probe_set, h.nuisance.name).relative_to(platform)
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / name).unlink(missing_ok=True)  # DVC's copies may be read-only
        shutil.copyfile(path, fresh / name)
    shutil.rmtree(final, ignore_errors=True)
    fresh.replace(final)
    return sorted(final.rglob("*.parquet"))


def _dvc_add(folders: list[Path], root: Path) -> None:
    command = [sys.executable, "-m", "dvc", "add", "--quiet", *map(str, folders)]
    if why := complaint(command, cwd=root):
        raise DataError(f"`dvc add` must take {', '.join(map(str, folders))}, but: {why}")
