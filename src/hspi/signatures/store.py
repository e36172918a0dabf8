"""The store: where signatures stand, which of them count, and how those that were made elsewhere join it.

The signatures of one hardware are one dataset, a folder of its own that DVC versions (`datasets`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from hspi.errors import DataError
from hspi.signatures import datasets

if TYPE_CHECKING:
    from hspi.signatures.schema import Header, Signature

STORE = Path("data/signatures")  # of a checkout


def signature_path(root: str | Path, hardware: str, software: str, model: str, probe_set: str, nuisance: str) -> Path:
    """Where a signature stands in a store. Names are for people; programs read the header."""
    return Path(root) / hardware / software / Path(model).name / f"{probe_set}.{nuisance}.parquet"


def iter_store(root: str | Path, model: str = "*") -> Iterator[Path]:
    """Every finished signature below a folder, or those in the folders of one model, in a stable order."""
    name = model if model == "*" else escape(Path(model).name)
    return iter(sorted(Path(root).glob(f"[!.]*/*/{name}/*.parquet")))  # a dot: what a kill left half-copied


def full_id(path: Path) -> str:
    """Of the platform whose folder a signature stands in: `amd-zen3/torch-bf16`."""
    return f"{path.parents[2].name}/{path.parents[1].name}"


def in_use(root: str | Path, globs: Sequence[str]) -> set[str]:
    """Full ids of a store's platforms that match one of `globs`: `*`, `torch-*` (on any hardware), `amd-zen3/*`."""
    wanted = [glob if "/" in glob else f"*/{glob}" for glob in globs]
    there = {f"{path.parent.name}/{path.name}" for path in Path(root).glob("[!.]*/*") if path.is_dir()}
    return {id for id in there if any(fnmatchcase(id, glob) for glob in wanted)}


def signatures_of(
    root: str | Path, model: str, weights_hash: str, use: Collection[str] | None = None
) -> list[Signature]:
    """Signatures of these weights in a store, of the platforms in `use` (full ids) or of all.

    Whatever versions of libraries answered: they stand in the header. Raises DataError if one of that name has other
    weights or stands in the folder of another platform, or if there is none.
    """
    from hspi.signatures.schema import read_header, read_signature

    found = []
    for path in iter_store(root, model):
        if use is not None and full_id(path) not in use:
            continue
        header = read_header(path)
        if header.model != model:
            continue
        _check_place(path, header)
        if header.weights_hash != weights_hash:
            raise DataError(
                f"{path} must answer for weights {weights_hash[:12]}, but it answers for {header.weights_hash[:12]}"
            )
        found.append(read_signature(path))
    if not found:
        raise DataError(
            f"{root} must hold signatures of {model!r} that params.yaml's `use` matches, but there is none: "
            "run `dvc pull` or `hspi collect`"
        )
    return found


def _check_place(path: Path, header: Header) -> None:
    if (there := full_id(path)) != (own := header.placed.id):
        raise DataError(f"{path} must hold a signature of {there}, but it is one of {own}: run `hspi signatures add`")


# ---------------------------------------------------------------- those that were made elsewhere


def add(folder: str | Path, *, root: str | Path = ".", versioned: bool = True) -> dict[str, list[Path]]:
    """Add every signature below `folder`, in whatever layout, to `data/signatures` of the checkout at `root`.

    All files are read whole before the first is copied. Each goes to the hardware and software that its header names,
    and a hardware's folder changes only when its copy is complete; a file with the same platform, model, probes and
    batch class replaces the old one. Returns hardware → the files that came. `versioned=False` leaves DVC out.

    Raises DataError if there is no signature, a file is not one, or DVC cannot take them.
    """
    found = _read_all(Path(folder))
    root = Path(root)
    added = {}
    for hardware, files in sorted(found.items()):
        if versioned:
            _complete(hardware, root)
        added[hardware] = _place(files, root / STORE, hardware)
        if versioned:
            _version(hardware, root)
    return added


def track(hardware: str, root: str | Path = ".") -> Path:
    """Version what `hspi collect` left in this hardware's folder. Returns the `.dvc` file, for git.

    What the dataset held before and the folder lacks, as in a clone that never pulled it, is pulled first: collecting
    extends a dataset. Raises DataError where there is no such folder, or DVC cannot take or fetch it.
    """
    root = Path(root)
    if not (root / STORE / hardware).is_dir():
        raise DataError(f"{root / STORE} must hold a folder of {hardware}, but it does not: run `hspi collect`")
    _complete(hardware, root)
    return _version(hardware, root)


def _read_all(folder: Path) -> dict[str, list[tuple[Path, Header]]]:
    from hspi.signatures.schema import read_signature

    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise DataError(f"{folder} must hold signatures (*.parquet), but it holds none")
    found: dict[str, list[tuple[Path, Header]]] = defaultdict(list)
    for path in paths:
        header = read_signature(path).header
        _check_names(path, header)
        found[header.hardware.id].append((path, header))
    return found


def _check_names(path: Path, h: Header) -> None:
    """What strangers sent decides where it is written: inside the store alone."""
    try:
        names = (h.hardware.id, h.placed.software, Path(h.model).name, h.probe_set, h.nuisance.name)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} must say what answered, but its header is odd: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise DataError(f"{path} must name things that can be folders, but it names {name!r}")


def _place(files: list[tuple[Path, Header]], store: Path, hardware: str) -> list[Path]:
    store.mkdir(parents=True, exist_ok=True)
    final, fresh = store / hardware, store / f".{hardware}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(final, fresh) if final.exists() else fresh.mkdir()
    placed = []
    for path, h in files:
        name = signature_path("", hardware, h.placed.software, h.model, h.probe_set, h.nuisance.name)
        target = fresh / name.relative_to(hardware)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # DVC's copies may be read-only
        shutil.copyfile(path, target)
        placed.append(store / name)
    shutil.rmtree(final, ignore_errors=True)
    fresh.replace(final)
    return sorted(set(placed))


# ---------------------------------------------------------------- DVC


def _complete(hardware: str, root: Path) -> None:
    """Pull what DVC versions of this hardware and its folder lacks, around whatever else lies there.

    DVC itself refuses to pull into a folder with files of its own, and would version the rest as removed.
    """
    target = STORE / f"{hardware}.dvc"
    if not (root / target).exists() or not _lacks(STORE / hardware, root):
        return
    final = root / STORE / hardware
    aside = final.with_name(f".{hardware}.aside.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.replace(aside)
    why = _dvc("pull", str(target), root=root)[1]
    if aside.exists():
        shutil.copytree(aside, final, dirs_exist_ok=True)
        shutil.rmtree(aside)
    if why:
        raise DataError(f"`dvc pull {target}` must bring what the dataset holds, but: {why}")


def _lacks(folder: Path, root: Path) -> bool:
    """Whether files that DVC versions below a folder are missing, as far as its cache can tell."""
    shown, why = _dvc("data", "status", "--granular", "--json", str(folder), root=root)
    if why:
        raise DataError(f"`dvc data status {folder}` must answer, but: {why}")
    said = json.loads(shown)
    return bool(said.get("not_in_cache") or said.get("uncommitted", {}).get("deleted"))


def _version(hardware: str, root: Path) -> Path:
    folder = STORE / hardware
    if why := _dvc("add", str(folder), root=root)[1]:
        raise DataError(f"`dvc add` must take {folder}, but: {why}")
    written = root / f"{folder}.dvc"
    datasets.describe(written, root / folder)
    return written


def _dvc(*words: str, root: Path) -> tuple[str, str]:
    """(what it printed, its own word for what went wrong or nothing). `--quiet` would keep that to itself."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True, check=False)
    if not done.returncode:
        return done.stdout, ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    return done.stdout, next((line for line in lines if line.startswith("ERROR: ")), lines[-1]).removeprefix("ERROR: ")
