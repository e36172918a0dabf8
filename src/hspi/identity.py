"""Who this machine is, by what it computes: a few platforms answer here, and their bits are held against signatures of
known hardware. What the device says of itself has no part in that, and is what the answer is checked against.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hspi.errors import DataError, PlatformError
from hspi.platforms import catalogue, machine
from hspi.platforms.hardware import Hardware
from hspi.platforms.record import Platform
from hspi.quiet import complaint
from hspi.signatures.schema import Header, Signature, read_header, read_signature
from hspi.signatures.store import STORE, iter_store

# Softwares that start fast, whose libraries choose kernels each in its own way. The slowest first: two run at a time.
SOFTWARES = ("ort-fp32", "ct2-fp32", "torch-fp32", "torch-bf16", "openvino-fp32", "cuda-fp32", "cuda-bf16")
SET, BATCH, AT_ONCE = "text", 1, 2
ALIKE = 0.999  # share of equal bits above which two machines compute alike
LIBRARY = {"pytorch": "torch", "onnx": "onnxruntime", "openvino": "openvino", "ctranslate2": "ctranslate2"}


@dataclass(frozen=True, slots=True)
class Likeness:
    """One software here, held against the same one on known hardware.

    shares: hardware → share of equal bits, highest first; capped: full ids of the same software under another cap of
    the instruction set → share, highest first; versions: hardware → the engine's version there, where it is another.
    """

    software: str
    shares: dict[str, float] = field(default_factory=dict)
    capped: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def alike(self) -> tuple[str, ...]:
        return tuple(hardware for hardware, share in self.shares.items() if share > ALIKE)

    @property
    def as_capped(self) -> tuple[str, ...]:
        return tuple(id for id, share in self.capped.items() if share > ALIKE)


@dataclass(frozen=True, slots=True)
class Identity:
    """hardware: as the device says; like: known hardware with the same bits in every software that it has signatures
    of, and in no fewer than any other has; nearest: alike in most of them; agrees: whether signatures of what the
    device says have the same bits, True too where there are none and it is alone, None where nothing tells.
    """

    hardware: Hardware
    rows: tuple[Likeness, ...]
    like: tuple[str, ...]
    nearest: str
    agrees: bool | None

    @property
    def compared(self) -> tuple[Likeness, ...]:
        return tuple(row for row in self.rows if row.shares)

    def answer(self) -> str:
        """One sentence: what this machine computes like."""
        if not self.compared:
            return "nobody has signatures of these softwares to compare with"
        same = sum(self.nearest in row.alike for row in self.compared)
        count = f"{same} of {len(self.compared)} software{'s' * (len(self.compared) > 1)}"
        if self.like:
            return f"computes like {' and '.join(self.like)}, alike in {count}"
        return f"computes like no known hardware; nearest is {self.nearest}, alike in {count}"

    def check(self) -> str:
        """One sentence: whether that is what the device says."""
        id = self.hardware.id
        known = [row for row in self.rows if id in row.shares]
        if self.agrees is None:
            return f"no signatures of {id} to compare with"
        if not known:
            return f"agree: there are no signatures of {id}, and it computes like none that there are"
        if self.agrees:
            return f"agree: signatures of {id} have the same bits"
        differing = ", ".join(row.software for row in known if id not in row.alike)
        return f"disagree: signatures of {id} have other bits in {differing}"


@dataclass(frozen=True, slots=True)
class Answer:
    """identities: one for each hardware here that answered; skipped: software → why it did not answer."""

    identities: tuple[Identity, ...]
    skipped: dict[str, str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        for data, identity in zip(found["identities"], self.identities, strict=True):
            data |= {"answer": identity.answer(), "check": identity.check()}
            for row, likeness in zip(data["rows"], identity.rows, strict=True):
                row |= {"alike": likeness.alike, "as_capped": likeness.as_capped}
        return found


def whoami(
    platforms: Sequence[str] = (),
    *,
    store: str | Path = STORE,
    model: str = "llama",
    params: str | Path = "params.yaml",
    step: Callable[[str], object] = lambda line: None,
) -> Answer:
    """Let a few platforms answer the text probes here, and say which known hardware has the same bits.

    platforms: ids of the catalogue, default those of SOFTWARES; what this machine cannot run is skipped and said.
    step: is told what happens. Raises DataError where `store` has no signatures of the model, UnknownName for a
    platform or model that is none, PlatformError where no platform answered.
    """
    began = time.monotonic()
    asked = [catalogue.get(id) for id in platforms or SOFTWARES]
    if not any(_of_model(store, model)):
        raise DataError(f"{store} must hold signatures of {model!r} to compare with, but there is none: run `dvc pull`")
    answers, skipped = ask_here(asked, model, params, step)
    if not answers:
        said = "; ".join(f"{id}: {why}" for id, why in skipped.items())
        raise PlatformError(f"at least one platform must answer here, but none did: {said}")
    step("comparing")
    found = identify(answers, comparable(store, answers))
    return Answer(tuple(found), skipped, round(time.monotonic() - began, 1))


def ask_here(
    platforms: Sequence[Platform], model: str, params: str | Path, step: Callable[[str], object]
) -> tuple[list[Signature], dict[str, str]]:
    """(what they answered, platform id → why it did not), each in a process of its own, two at a time."""
    skipped = {p.id: can.why_not for p in platforms if not (can := machine.availability(p)).runnable}
    running = [p.id for p in platforms if p.id not in skipped]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hspi", "collect", "--model", model, "--probes", SET, "--out", folder]
        command += ["--batch-size", str(BATCH), "--progress", "none", "--params", str(params), "--platform"]

        def ask(id: str) -> str:
            step(id)
            return complaint([*command, id])

        with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
            skipped |= {id: why for id, why in zip(running, pool.map(ask, running), strict=True) if why}
        return [read_signature(path) for path in iter_store(folder)], skipped


# ---------------------------------------------------------------- comparing: no file, no clock, no engine


def identify(answers: Sequence[Signature], shipped: Iterable[Signature]) -> list[Identity]:
    """One identity for each hardware that answered, by signatures of known hardware to the same questions."""
    known = list(shipped)
    here: dict[str, list[Signature]] = {}
    for answer in answers:
        here.setdefault(answer.header.hardware.id, []).append(answer)
    return [_identity(some[0].header.hardware, [_likeness(a, known) for a in some]) for some in here.values()]


def _identity(hardware: Hardware, rows: list[Likeness]) -> Identity:
    met = {id: [row for row in rows if id in row.shares] for row in rows for id in row.shares}

    def fit(id: str) -> tuple[int, float]:
        return sum(id in row.alike for row in met[id]), float(np.mean([row.shares[id] for row in met[id]]))

    order = sorted(met, key=lambda id: (*(-x for x in fit(id)), id))
    whole = [id for id in order if fit(id)[0] == len(met[id])]
    like = tuple(id for id in whole if fit(id)[0] == fit(order[0])[0])
    agrees = hardware.id in whole if hardware.id in met else (True if met and not like else None)
    return Identity(hardware, tuple(rows), like, order[0] if order else "", agrees)


def _likeness(answer: Signature, shipped: Iterable[Signature]) -> Likeness:
    """The best of each hardware's signatures that answer the same question at the same batch size."""
    mine = answer.header
    shares: dict[str, float] = {}
    capped: dict[str, float] = {}
    versions: dict[str, str] = {}
    for other in shipped:
        if not same_question(mine, other.header):
            continue
        placed, share = other.header.placed, equal_bits(answer, other)
        if placed.software == mine.platform.software:
            if share >= shares.get(placed.hardware, 0.0):
                shares[placed.hardware] = share
                versions[placed.hardware] = _version(other.header)
        elif placed.hardware != mine.hardware.id and is_capped_alike(mine.platform, placed):
            capped[placed.id] = max(share, capped.get(placed.id, 0.0))
    others = {hardware: version for hardware, version in versions.items() if version != _version(mine)}
    return Likeness(mine.platform.software, _highest_first(shares), _highest_first(capped), others)


def equal_bits(a: Signature, b: Signature) -> float:
    """Share of (row, place of the top-k) where both have the same token with the same bits; 0 where rows differ."""
    if not np.array_equal(a.probe_id, b.probe_id):
        return 0.0
    k = min(a.header.top_k, b.header.top_k)
    bits = a.topk_logprobs[:, :k].view(np.uint32) == b.topk_logprobs[:, :k].view(np.uint32)
    return float((bits & (a.topk_ids[:, :k] == b.topk_ids[:, :k])).mean())


def same_question(a: Header, b: Header) -> bool:
    """The same weights and probes, at the same batch size."""
    ours = (a.weights_hash, a.probe_hash, a.positions, a.nuisance.batch_size)
    return ours == (b.weights_hash, b.probe_hash, b.positions, b.nuisance.batch_size)


def is_capped_alike(a: Platform, b: Platform) -> bool:
    """One software under two caps of the instruction set."""

    def less_cap(p: Platform) -> tuple[object, ...]:
        return (p.engine, p.dtype, p.quantization, p.kv_cache, p.attention, p.compile, p.tensor_parallel, p.device)

    return a.isa_cap != b.isa_cap and less_cap(a) == less_cap(b)


def comparable(store: str | Path, answers: Sequence[Signature]) -> Iterator[Signature]:
    """The signatures of a store that any of these answers can be held against."""
    for path in _of_model(store, answers[0].header.model):
        header = read_header(path)
        if any(
            same_question(a.header, header)
            and (
                a.header.platform.software == header.platform.software
                or is_capped_alike(a.header.platform, header.platform)
            )
            for a in answers
        ):
            yield read_signature(path)


def _of_model(store: str | Path, model: str) -> Iterator[Path]:
    return (path for path in iter_store(store) if path.parent.name == Path(model).name)


def _version(header: Header) -> str:
    name = LIBRARY.get(header.platform.engine, "")
    return f"{name} {header.facts.get(f'version_{name}', '?')}" if name else ""


def _highest_first(shares: dict[str, float]) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))
