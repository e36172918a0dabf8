"""Whose signatures an endpoint is held against: those in the detector's library or the store, and those made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi import probes, zoo
from hspi.bundle import Bundle
from hspi.errors import ConfigError, DataError, PlatformError, UnknownName
from hspi.evidence.aligned import ABSENT, Aligned, align
from hspi.evidence.equivalence import Classes
from hspi.featurize import classify
from hspi.params import Params
from hspi.platforms import catalogue, machine
from hspi.reference.store import references as references_of
from hspi.signatures.collect import Job, is_finished
from hspi.signatures.schema import Header, Signature, read_header, read_signature
from hspi.signatures.store import iter_store
from hspi.zoo import ModelRef

KINDS = ("local", "store", "emulated")
Say = Callable[[str], object]


def parse_kinds(text: str) -> tuple[str, ...]:
    """`store,emulated` → a tuple of KINDS. Raises ConfigError."""
    kinds = tuple(k.strip() for k in text.split(",") if k.strip())
    if not kinds or not set(kinds) <= set(KINDS):
        raise ConfigError(f"candidates must be some of {', '.join(KINDS)}, but got {text!r}")
    return kinds


def gather(
    bundle: Bundle,
    ref: ModelRef,
    kinds: Sequence[str],
    p: Params,
    store: Path,
    cache: Path,
    say: Say,
    *,
    claim: str | None = None,
    params_file: str = "params.yaml",
) -> tuple[Bundle, str]:
    """(the bundle with a library for these weights, the name they have in it).

    The detector's own library comes first, then what it lacks: of the store, and of what runs on this machine, the
    claim before all. `store` and `cache` are folders of signatures; what is collected here goes to `cache` and is not
    made again. Without any signature the bundle comes back without a library of that name.
    """
    name = known_as(ref)
    library = bundle.library.get(name) if "store" in kinds else None
    known = set() if library is None else set(library.platform_ids())
    more: list[Signature] = []
    if "store" in kinds:
        more = _signatures(store, ref, known, {} if library is None else library.probe_hashes)
        known |= {s.header.platform.id for s in more}
    if "local" in kinds:
        wanted = [i for i in dict.fromkeys([*_in_catalogue(claim), *p.platforms]) if i not in known]
        collect_here([i for i in wanted if not _collected(i, ref, p, cache)], ref, cache, say, params_file)
        more += _signatures(cache, ref, known, {})
    if library is None and not more:
        hint = "" if "local" in kinds else ": --candidates local,store makes those that this machine can run"
        say(f"no signatures of {name!r} are known{hint}")
        return Bundle(bundle.verifier, bundle.family, bundle.calibration, {}, {}), name
    if more:
        bundle = with_library(bundle, ref, name, more, p, cache / "reference", library)
    bundle = as_served(bundle, name, p)
    keep = [q.id for q in bundle.library[name].platforms if q.provenance != "emulated" or "emulated" in kinds]
    return only(bundle, name, keep), name


def as_served(bundle: Bundle, model: str, p: Params) -> Bundle:
    """The bundle with those of the model's probes that were collected as an endpoint answers: one position each.

    With more positions in a call the same engine may take another kernel for its last product: torch in fp32 answers
    about half of a top-k in other bits then, and an honest endpoint would look like nobody.
    """
    data = bundle.library[model]
    at = [i for i, (name, _) in enumerate(data.probes) if p.probes.spec(name).positions == 1]
    if not at:
        raise DataError("probes.sets must hold a set of one position for audits, but each has more")
    return replace_library(bundle, data.on_probes(np.asarray(at)), bundle.classes[model])


def _in_catalogue(platform: str | None) -> list[str]:
    try:
        return [] if platform is None else [catalogue.get(platform).id]
    except UnknownName:
        return []  # the claim's own check says so, with the candidates' names


def known_as(ref: ModelRef) -> str:
    """The zoo's name for weights with the same hash, else the reference's own."""
    same = [m["id"] for m in zoo.list_models() if m["weights_hash"] == ref.weights_hash]
    return str(same[0]) if same else ref.id


def collect_here(platforms: Sequence[str], ref: ModelRef, cache: Path, say: Say, params_file: str) -> None:
    """Signatures of every one of these platforms that runs here, each in a process of its own."""
    for platform in platforms:
        if not machine.availability(catalogue.get(platform)).runnable:
            continue
        say(f"collecting {platform} on this machine, to be kept in {cache}")
        model = ref.id if ref.id in zoo.ZOO else str(ref.path)
        command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--model", model]
        command += ["--out", str(cache), "--progress", "none", "--jobs", "1", "--params", params_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]
            raise PlatformError(f"{platform} must run on this machine, but: {last.removeprefix('Error: ')}")


def _collected(platform: str, ref: ModelRef, p: Params, cache: Path) -> bool:
    """Whether the cache holds all of a platform's signatures of these weights already."""
    tokenizer = zoo.load_tokenizer(ref)
    sets = [probes.build(p.probes.spec(name), tokenizer) for name in p.probes.sets]
    known, model = catalogue.get(platform), ref.id if ref.id in zoo.ZOO else str(ref.path)
    return all(
        is_finished(Job(known, model, s.spec, nuisance, cache), ref.weights_hash, s.hash)
        for s in sets
        for nuisance in p.nuisances
    )


def _signatures(root: Path, ref: ModelRef, but: Collection[str], asked: Mapping[str, str]) -> list[Signature]:
    """All of these weights below a folder, except those of the platforms `but`.

    asked: hashes by probe set; a platform that did not answer every one of these is left out. Empty: no matter which.
    """
    headers = {path: read_header(path) for path in iter_store(root)}
    found = {f: h for f, h in headers.items() if h.weights_hash == ref.weights_hash and h.platform.id not in but}
    answered: dict[str, set[str]] = {}
    for h in found.values():
        if asked.get(h.probe_set) == h.probe_hash:
            answered.setdefault(h.platform.id, set()).add(h.probe_set)

    def fits(h: Header) -> bool:
        return h.probe_set in asked and answered.get(h.platform.id) == set(asked) and asked[h.probe_set] == h.probe_hash

    return [read_signature(f) for f, h in found.items() if not asked or fits(h)]


def with_library(
    bundle: Bundle,
    ref: ModelRef,
    name: str,
    signatures: Sequence[Signature],
    p: Params,
    references: Path,
    library: Aligned | None = None,
) -> Bundle:
    """The bundle with these signatures as candidates, beside those of `library`; classes are measured anew."""
    specs = [p.probes.spec(s) for s in p.probes.sets]
    references.mkdir(parents=True, exist_ok=True)
    model = ref.id if ref.id in zoo.ZOO else str(ref.path)
    logits, predicted = references_of(model, specs, references)
    data = align(name, signatures, logits, predicted=predicted)
    if library is not None:
        data = joined(library, data)
    classes = classify(data, p.evaluation.seed, p.evaluation.top_k)
    return replace_library(bundle, data, classes)


def joined(first: Aligned, second: Aligned) -> Aligned:
    """Both libraries' platforms on the same probes and slots. Raises DataError if those differ."""
    clash = any(second.probe_hashes.get(name, known) != known for name, known in first.probe_hashes.items())
    if clash or first.probes != second.probes or not np.array_equal(first.slots, second.slots):
        raise DataError(f"signatures of {first.model!r} must answer the detector's own probes, but these do not")
    settings = sorted({*first.nuisances, *second.nuisances})

    def spread(data: Aligned, array: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
        out = np.full((len(array), len(settings), *array.shape[2:]), empty, array.dtype)
        out[:, [settings.index(n) for n in data.nuisances]] = array
        return out

    def both(name: str, empty: float) -> npt.NDArray[Any]:
        return np.concatenate([spread(d, getattr(d, name), empty) for d in (first, second)])

    return replace(
        first,
        platforms=[*first.platforms, *second.platforms],
        nuisances=settings,
        logprobs=both("logprobs", np.nan),
        rank=both("rank", ABSENT),
        raw=both("raw", np.nan),
    )


def replace_library(bundle: Bundle, data: Aligned, classes: Classes) -> Bundle:
    return Bundle(
        bundle.verifier,
        bundle.family,
        bundle.calibration,
        {**bundle.library, data.model: data},
        {**bundle.classes, data.model: classes},
    )


def only(bundle: Bundle, model: str, platforms: Sequence[str]) -> Bundle:
    """The bundle with these platforms alone in the model's library."""
    data, classes = bundle.library[model], bundle.classes[model]
    at = np.asarray([i for i, q in enumerate(data.platforms) if q.id in set(platforms)], np.int64)
    if len(at) == len(data.platforms):
        return bundle
    if len(at) < 2:
        raise DataError(f"there must be at least 2 candidates for {model!r}, but got {len(at)}")
    kept = replace(
        data,
        platforms=[data.platforms[i] for i in at],
        logprobs=data.logprobs[at],
        rank=data.rank[at],
        raw=data.raw[at],
    )
    old = [classes.label[i] for i in at]
    number = {label: n for n, label in enumerate(dict.fromkeys(old))}
    some = Classes(
        model,
        [classes.platform_ids[i] for i in at],
        [number[label] for label in old],
        classes.separation[np.ix_(at, at)],
        classes.low[np.ix_(at, at)],
    )
    return replace_library(bundle, kept, some)
