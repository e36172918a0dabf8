"""Whose signatures an endpoint is held against: those in the detector's library or the store, and those made here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from hspi import probes, zoo
from hspi.detectors.detector import Detector
from hspi.errors import ConfigError, DataError, PlatformError, UnknownName
from hspi.evidence.aligned import align
from hspi.evidence.library import Library
from hspi.params import Params
from hspi.platforms import catalogue, machine
from hspi.quiet import complaint
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
    detector: Detector,
    ref: ModelRef,
    kinds: Sequence[str],
    p: Params,
    store: Path,
    cache: Path,
    say: Say,
    *,
    claim: str | None = None,
    params_file: str = "params.yaml",
) -> tuple[Detector, str]:
    """(the detector with a library for these weights, the name they have in it).

    The detector's own library comes first, then what it lacks: of the store, and of what runs on this machine, the
    claim before all. `store` and `cache` are folders of signatures; what is collected here goes to `cache` and is not
    made again. Without any signature the detector comes back without a library of that name.
    """
    name = known_as(ref)
    library = detector.libraries.get(name) if "store" in kinds else None
    known = set() if library is None else set(library.platform_ids)
    more: list[Signature] = []
    if "store" in kinds:
        more = _signatures(store, ref, known, {} if library is None else library.data.probe_hashes)
        known |= {s.header.platform.id for s in more}
    if "local" in kinds:
        wanted = [i for i in dict.fromkeys([*_in_catalogue(claim), *p.demo.collect]) if i not in known]
        collect_here([i for i in wanted if not _collected(i, ref, p, cache)], ref, cache, say, params_file)
        more += _signatures(cache, ref, known, {})
    if library is None and not more:
        hint = "" if "local" in kinds else ": --candidates local,store makes those that this machine can run"
        say(f"no signatures of {name!r} are known{hint}")
        return detector.without_libraries(), name
    if more:
        library = measured(ref, name, more, p, cache / "reference", library)
    assert library is not None
    library = as_served(library, p)
    keep = [q.id for q in library.data.platforms if q.provenance != "emulated" or "emulated" in kinds]
    return detector.with_library(library.only(keep)), name


def as_served(library: Library, p: Params) -> Library:
    """With those of its probes that were collected as an endpoint answers: one position each.

    With more positions in a call the same engine may take another kernel for its last product: torch in fp32 answers
    about half of a top-k in other bits then, and an honest endpoint would look like nobody.
    """
    at = [i for i, (name, _) in enumerate(library.data.probes) if p.probes.spec(name).positions == 1]
    if not at:
        raise DataError("probes.sets must hold a set of one position for audits, but each has more")
    return library.on_probes(np.asarray(at))


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
        command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--model", ref.asked_as]
        command += ["--out", str(cache), "--progress", "none", "--jobs", "1", "--params", params_file]
        if why := complaint(command):
            raise PlatformError(f"{platform} must run on this machine, but: {why.removeprefix('Error: ')}")


def _collected(platform: str, ref: ModelRef, p: Params, cache: Path) -> bool:
    """Whether the cache holds all of a platform's signatures of these weights already."""
    tokenizer = zoo.load_tokenizer(ref)
    sets = [probes.build(spec, tokenizer) for spec in p.probes.specs()]
    known = catalogue.get(platform)
    return all(
        is_finished(Job(known, ref.asked_as, s.spec, nuisance, cache), ref.weights_hash, s.hash)
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


def measured(
    ref: ModelRef,
    name: str,
    signatures: Sequence[Signature],
    p: Params,
    references: Path,
    library: Library | None = None,
) -> Library:
    """These signatures as candidates, beside those of `library`; classes are measured anew."""
    references.mkdir(parents=True, exist_ok=True)
    logits, predicted = references_of(ref.asked_as, p.probes.specs(), references)
    data = align(name, signatures, logits, predicted=predicted)
    seed, top_k = p.evaluation.seed, p.evaluation.top_k
    return Library.measured(data, seed, top_k) if library is None else library.joined(data, seed, top_k)
