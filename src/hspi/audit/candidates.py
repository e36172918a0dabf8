"""Whose signatures an endpoint is held against: those in the detector's library or the store, and those made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hspi import featurize, zoo
from hspi.bundle import Bundle
from hspi.errors import ConfigError, DataError, PlatformError
from hspi.evidence.aligned import Aligned, align
from hspi.evidence.equivalence import Classes
from hspi.params import Params
from hspi.platforms import catalogue, machine
from hspi.signatures import Signature, iter_store, read_header, read_signature
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
    bundle: Bundle, ref: ModelRef, kinds: Sequence[str], p: Params, store: Path, cache: Path, say: Say
) -> tuple[Bundle, str]:
    """(the bundle with a library for these weights, the name they have in it).

    `store` and `cache` are folders of signatures; what this machine collects goes to `cache`, and is not made again.
    Raises DataError where there is no candidate.
    """
    name = known_as(ref)
    if "local" in kinds:
        known = bundle.classes[name].platform_ids if name in bundle.classes else []
        collect_here([i for i in p.platforms if i not in known], ref, p, cache, say)
    local = _signatures(cache, ref) if "local" in kinds else []
    if name not in bundle.library or local or "store" not in kinds:
        stored = _signatures(store, ref) if "store" in kinds else []
        bundle = with_library(bundle, ref, name, [*stored, *local], p, cache / "reference")
    keep = [q.id for q in bundle.library[name].platforms if q.provenance != "emulated" or "emulated" in kinds]
    return only(bundle, name, keep), name


def known_as(ref: ModelRef) -> str:
    """The zoo's name for weights with the same hash, else the reference's own."""
    same = [m["id"] for m in zoo.list_models() if m["weights_hash"] == ref.weights_hash]
    return str(same[0]) if same else ref.id


def collect_here(platforms: Sequence[str], ref: ModelRef, p: Params, cache: Path, say: Say) -> None:
    """Signatures of every one of these platforms that runs here, each in a process of its own."""
    for platform in platforms:
        if not machine.availability(catalogue.get(platform)).runnable:
            continue
        say(f"replaying {platform} on this machine (cached in {cache})")
        model = ref.id if ref.id in zoo.ZOO else str(ref.path)
        command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--model", model]
        command += ["--out", str(cache), "--progress", "none", "--jobs", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]
            raise PlatformError(f"{platform} must run on this machine, but: {last.removeprefix('Error: ')}")


def _signatures(root: Path, ref: ModelRef) -> list[Signature]:
    return [read_signature(f) for f in iter_store(root) if read_header(f).weights_hash == ref.weights_hash]


def with_library(
    bundle: Bundle, ref: ModelRef, name: str, signatures: Sequence[Signature], p: Params, references: Path
) -> Bundle:
    if not signatures:
        raise DataError(
            f"there must be candidates for {name!r}, but no signature is known: try --candidates local,store"
        )
    specs = [p.probes.spec(s) for s in p.probes.sets]
    references.mkdir(parents=True, exist_ok=True)
    model = ref.id if ref.id in zoo.ZOO else str(ref.path)
    logits, predicted = featurize.references(model, specs, references)
    data = align(name, signatures, logits, predicted=predicted)
    classes = featurize.classify(data, p.evaluation.seed, p.evaluation.top_k)
    return replace_library(bundle, data, classes)


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
