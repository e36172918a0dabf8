"""Whose signatures an endpoint is held against: those in the detector's library or the store, and those made here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from hspi import zoo
from hspi.detectors.detector import Detector
from hspi.errors import ConfigError, DataError, PlatformError
from hspi.evidence.aligned import align
from hspi.evidence.library import Library
from hspi.params import Params
from hspi.platforms import catalogue, machine
from hspi.platforms.claim import Claim
from hspi.quiet import complaint
from hspi.reference.store import references as references_of
from hspi.signatures.collect import is_collected
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
    claim: Claim | None = None,
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
        known |= {s.header.placed.id for s in more}
    if "local" in kinds:
        every = map(catalogue.get, dict.fromkeys([*_in_catalogue(claim), *p.demo.collect]))
        wanted = [q for q in every if machine.availability(q).runnable]
        wanted = [q for q in wanted if q.on(machine.hardware_here(q).id).id not in known]
        missing = [q.id for q in wanted if not is_collected(q, ref, p.probes.specs(), cache)]
        collect_here(missing, ref, cache, say, params_file)
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


def _in_catalogue(claim: Claim | None) -> list[str]:
    """The claim's software, where the catalogue has it; otherwise the claim's own check says what there is."""
    return [] if claim is None or claim.software not in catalogue.CATALOGUE else [claim.software]


def known_as(ref: ModelRef) -> str:
    """The zoo's name for weights with the same hash, else the reference's own."""
    same = [m["id"] for m in zoo.list_models() if m["weights_hash"] == ref.weights_hash]
    return str(same[0]) if same else ref.id


def collect_here(platforms: Sequence[str], ref: ModelRef, cache: Path, say: Say, params_file: str) -> None:
    """Signatures of every one of these platforms, which run here, each in a process of its own."""
    for platform in platforms:
        say(f"collecting {platform} on this machine, to be kept in {cache}")
        command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--model", ref.asked_as]
        command += ["--out", str(cache), "--progress", "none", "--jobs", "1", "--params", params_file]
        if why := complaint(command):
            raise PlatformError(f"{platform} must run on this machine, but: {why.removeprefix('Error: ')}")


def _signatures(root: Path, ref: ModelRef, but: Collection[str], asked: Mapping[str, str]) -> list[Signature]:
    """All of these weights below a folder, except those of the platforms `but`.

    asked: hashes by probe set; a platform that did not answer every one of these is left out. Empty: no matter which.
    """
    headers = {path: read_header(path) for path in iter_store(root)}
    found = {f: h for f, h in headers.items() if h.weights_hash == ref.weights_hash and h.placed.id not in but}
    answered: dict[str, set[str]] = {}
    for h in found.values():
        if asked.get(h.probe_set) == h.probe_hash:
            answered.setdefault(h.placed.id, set()).add(h.probe_set)

    def fits(h: Header) -> bool:
        return h.probe_set in asked and answered.get(h.placed.id) == set(asked) and asked[h.probe_set] == h.probe_hash

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
