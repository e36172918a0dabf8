"""Probes × platform → signatures, one file for each (model, probe set, batch class); resumes after a kill.

Needs torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU server.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from hspi import params as parameters
from hspi import probes, zoo
from hspi.errors import DataError, HspiError, PlatformError
from hspi.platforms import catalogue, machine
from hspi.platforms.hardware import hardware_of
from hspi.platforms.opening import import_engine, open_adapter
from hspi.platforms.record import Adapter, LogProbs, Nuisance, Platform
from hspi.probes import ProbeSet, ProbeSpec
from hspi.signatures import batch_classes
from hspi.signatures.batch_classes import BatchClasses
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header, read_header
from hspi.signatures.store import STORE, signature_path
from hspi.signatures.top_k import top_k
from hspi.zoo import ModelRef

HELD_SECONDS = 0.05  # of finished work that a kill may cost
CLASS_PROBES = 64  # that batch classes are found with: one in ten may be all that another kernel moves
HELD_BYTES = 1 << 20  # more would leave the caches before it is read

Tick = Callable[[int], object]
Opener = Callable[[Platform, Path, int], Adapter]


@dataclass(frozen=True, slots=True)
class Job:
    """One signature to make, below `root`."""

    platform: Platform
    hardware: str
    model: str
    spec: ProbeSpec
    nuisance: Nuisance
    root: Path

    @property
    def path(self) -> Path:
        return signature_path(
            self.root, self.hardware, self.platform.software, self.model, self.spec.name, self.nuisance.name
        )


def batches(size: int, nuisance: Nuisance) -> Iterator[tuple[np.ndarray, int]]:
    """(probe ids that are served together, int64 (batch_size,); how many of them, the first, count), in order.

    Every batch is full: what the last one lacks is filled with probes that were served before, for fewer would be
    another batch size, and perhaps other kernels.
    """
    order = np.arange(size)
    if nuisance.company == "shuffled":
        order = np.random.default_rng(nuisance.seed).permutation(size)
    for start in range(0, size, nuisance.batch_size):
        own = order[start : start + nuisance.batch_size]
        yield np.concatenate([own, np.resize(order, nuisance.batch_size - len(own))]), len(own)


def collect_one(adapter: Adapter, header: Header, probe_set: ProbeSet, path: Path, tick: Tick = lambda n: None) -> Path:
    """Ask every probe that the journal does not hold yet, then write the finished signature. Returns its path.

    Small answers are journalled together, `HELD_SECONDS` later at most: after each single one our own work would drive
    the engine's out of the caches, and cost more there than it takes itself.
    """
    spec = probe_set.spec
    held: list[tuple[np.ndarray, LogProbs]] = []

    def record() -> None:
        if held:
            ids, answers = held[0] if len(held) == 1 else map(np.concatenate, zip(*held, strict=True))
            held.clear()
            journal.append(to_batch(journal.schema, ids, spec.length, *top_k(answers, spec.top_k)))
            tick(len(ids))

    with Journal(path, header) as journal:
        tick(len(journal.done))
        recorded = time.monotonic()
        try:
            for ids, own in batches(spec.size, header.nuisance):
                if journal.done.issuperset(ids[:own].tolist()):
                    continue
                answers = adapter.logprobs([probe_set.contexts[i] for i in ids], spec.positions)
                held.append((ids[:own], answers[:own]))
                size = sum(answers.nbytes for _, answers in held)
                if size > HELD_BYTES or time.monotonic() - recorded > HELD_SECONDS:
                    record()
                    recorded = time.monotonic()
        finally:
            record()
        return journal.finish()


def is_finished(job: Job, weights_hash: str, probe_hash: str) -> bool:
    """Whether the job's file is there and answers the same probes with the same weights on the same platform."""
    try:
        h = read_header(job.path)
    except DataError:
        return False
    wanted = (weights_hash, probe_hash, job.nuisance, job.spec.positions, job.spec.top_k)
    found = (h.weights_hash, h.probe_hash, h.nuisance, h.positions, h.top_k)
    return found == wanted and h.platform.computes_as(job.platform)


def known_classes(folder: Path, weights_hash: str, platform: Platform) -> BatchClasses | None:
    """What an earlier start found of this platform on these weights, as the signatures that it left say."""
    for path in sorted(folder.glob("*.parquet")):
        try:
            h = read_header(path)
        except DataError:
            continue
        if h.batch_classes and h.weights_hash == weights_hash and h.platform.computes_as(platform):
            return h.batch_classes
    return None


def is_collected(platform: Platform, ref: ModelRef, specs: Sequence[ProbeSpec], root: Path) -> bool:
    """Whether a store holds all that this machine would make of a platform on these weights: each batch class that was
    found of it, for every probe set."""
    hardware, tokenizer = machine.hardware_here(platform).id, zoo.load_tokenizer(ref)
    sets = [probes.build(spec, tokenizer) for spec in specs]
    folder = Job(platform, hardware, ref.asked_as, specs[0], Nuisance("b1"), root).path.parent
    classes = known_classes(folder, ref.weights_hash, platform)
    return classes is not None and all(
        is_finished(Job(platform, hardware, ref.asked_as, s.spec, n, root), ref.weights_hash, s.hash)
        for s in sets
        for n in classes.settings()
    )


def find_classes(
    adapter: Adapter, probe_set: ProbeSet, tick: Tick = lambda n: None, expect: Tick = lambda n: None
) -> BatchClasses:
    """Serve the set's first probes at many batch sizes, and see where bits change. tick, expect: as in `Order`."""
    contexts = list(probe_set.contexts[:CLASS_PROBES])

    def ask(size: int, seed: int | None) -> list[bytes]:
        nuisance = Nuisance("", size) if seed is None else Nuisance("", size, "shuffled", seed)
        found = [b""] * len(contexts)
        expect(len(contexts))
        for ids, own in batches(len(contexts), nuisance):
            rows = adapter.logprobs([contexts[i] for i in ids], 1)
            for i, row in zip(ids[:own], rows, strict=False):
                found[i] = hashlib.sha256(row.tobytes()).digest()
            tick(own)
        return found

    return batch_classes.find(ask)


@dataclass(frozen=True, slots=True)
class Order:
    """What to make of one platform: models (zoo ids, folders or hub ids) × probe sets × settings, below `root`.

    settings: none to find the platform's batch classes on each model, and make one signature for each of them.
    tick: is told how many probes were answered just now; expect: how many more than one setting's are to come.
    """

    platform: Platform
    hardware: str
    specs: Sequence[ProbeSpec]
    settings: Sequence[Nuisance]
    root: Path
    tick: Tick = lambda n: None
    expect: Tick = lambda n: None

    @property
    def threads(self) -> int:
        return max((n.threads for n in self.settings), default=1)


def collect_model(order: Order, model: str, running: Opener | None = None) -> list[Path]:
    """All signatures of one model in this process. Opens the engine only if something is left to do.

    running: gives the adapter of a server that runs already, wherever it is: then this machine's facts are none of it.
    """
    ref = zoo.resolve(model)
    tokenizer = zoo.load_tokenizer(ref)
    platform, adapters = order.platform, dict[int, Adapter]()

    def adapter(threads: int) -> Adapter:
        if threads not in adapters:
            adapters[threads] = (running or open_adapter)(platform, ref.path, threads)
        return adapters[threads]

    sets = [probes.build(spec, tokenizer) for spec in order.specs]
    classes, settings = None, order.settings
    if not settings:
        folder = Job(platform, order.hardware, model, sets[0].spec, Nuisance("b1"), order.root).path.parent
        classes = known_classes(folder, ref.weights_hash, platform) or find_classes(
            adapter(1), sets[0], order.tick, order.expect
        )
        settings = classes.settings()
    order.expect((len(settings) - max(len(order.settings), 1)) * sum(s.spec.size for s in sets))
    paths = []
    for probe_set in sets:
        for nuisance in settings:
            job = Job(platform, order.hardware, model, probe_set.spec, nuisance, order.root)
            paths.append(job.path)
            if is_finished(job, ref.weights_hash, probe_set.hash):
                job.path.with_name(f"{job.path.name}.partial").unlink(missing_ok=True)  # of a kill just after the end
                order.tick(job.spec.size)
                continue
            header = Header(
                platform=platform,
                model=ref.id,
                weights_hash=ref.weights_hash,
                probe_set=job.spec.name,
                probe_hash=probe_set.hash,
                nuisance=nuisance,
                positions=job.spec.positions,
                top_k=job.spec.top_k,
                facts={
                    **({} if running else machine.platform_facts(platform)),
                    **adapter(nuisance.threads).facts(),
                },
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                batch_classes=classes,
            )
            collect_one(adapter(nuisance.threads), header, probe_set, job.path, order.tick)
    return paths


def collect(
    platform: str,
    models: Sequence[str] = (),
    sets: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    *,
    out: str | Path = STORE,
    params: str | Path = "params.yaml",
    jobs: int | None = None,
    tick: Tick = lambda n: None,
    expect: Tick = lambda n: None,
) -> list[Path]:
    """Make the signatures of one platform of the catalogue; killed and called again, it goes on where it stopped.

    models: zoo ids, folders or hub ids; sets: names of probe sets; jobs: processes that share the models. What is left
    out comes from `params`. batch_sizes: of the settings; without any, the platform's batch classes are found, and each
    gets one signature. tick: is told how many probes more are done; expect: how many more are to come than models ×
    sets have. Returns the files, OUT/<hardware>/<platform>/<model>/<set>.<setting>.parquet. One process runs one
    platform: libraries choose their code paths once. Raises PlatformError if this machine or process cannot run it,
    UnknownName, ModelError.
    """
    p = parameters.load(params)
    specs = [p.probes.spec(name) for name in sets or p.probes.sets]
    settings = [batch_classes.setting(b) for b in batch_sizes]
    chosen = list(models or p.models)
    return collect_platform(platform, chosen, specs, settings, out, tick, jobs or p.collect.jobs, expect)


def collect_platform(
    platform_id: str,
    models: Sequence[str],
    specs: Sequence[ProbeSpec],
    settings: Sequence[Nuisance],
    root: str | Path,
    tick: Tick = lambda n: None,
    processes: int = 1,
    expect: Tick = lambda n: None,
) -> list[Path]:
    """Every model × probe set × setting of one platform. Returns the files; finished ones are not made again.

    models: zoo ids, folders or hub ids; root: the store, where `signature_path` puts them; settings, tick and expect as
    `Order` has them. The environment of this process becomes the platform's own. With more processes than one the
    models are shared among forked children, so that the engine's libraries are imported once.

    Raises UnknownName for a platform or model that is none, PlatformError if this machine or process cannot run the
    platform, ModelError where weights or tokenizer cannot be loaded.
    """
    platform = catalogue.get(platform_id)
    can = machine.availability(platform)
    if not can.runnable:
        raise PlatformError(f"platform {platform_id} must be runnable on this machine, but: {can.why_not}")
    machine.apply_env(platform)
    hardware = machine.hardware_here(platform).id
    order = Order(platform, hardware, specs, settings, Path(root), tick, expect)
    # Before the engine is imported: switching its thread pool for each call would cost as much as the call.
    os.environ.setdefault("OMP_NUM_THREADS", str(order.threads))
    if processes > 1 and len(models) > 1:
        import_engine(platform)
        return _in_children(order, [list(models[i::processes]) for i in range(min(processes, len(models)))])
    return [path for model in models for path in collect_model(order, model)]


def collect_running(
    platform: Platform,
    url: str,
    served: str,
    model: str,
    specs: Sequence[ProbeSpec],
    settings: Sequence[Nuisance],
    root: str | Path,
    tick: Tick = lambda n: None,
    expect: Tick = lambda n: None,
) -> list[Path]:
    """Signatures of a server that runs already at `url` (up to /v1), labelled as `platform`. Returns the files.

    Raises EndpointError where it does not answer with log-probabilities by token id.
    """
    from hspi.platforms.servers.endpoint import attach

    order = Order(platform, hardware_of(platform, {}).id, specs, settings, Path(root), tick, expect)
    return collect_model(order, model, lambda p, path, _: attach(url, served, p, path))


def _in_children(order: Order, shares: Sequence[Sequence[str]]) -> list[Path]:
    """Fork a child for each share. The first that fails ends the others, and its error is raised here."""
    context = multiprocessing.get_context("fork")
    children = {}
    for share in shares:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(there, order, share), daemon=True)
        child.start()
        there.close()
        children[here] = child
    paths: list[Path] = []
    try:
        while children:
            for pipe in connection.wait(list(children)):
                assert isinstance(pipe, connection.Connection)
                _hear(pipe, children, order, paths)
    finally:
        for child in children.values():
            child.terminate()
            child.join()
    return sorted(paths)


def _hear(pipe: connection.Connection, children: dict[Any, Any], order: Order, paths: list[Path]) -> None:
    try:
        kind, said = json.loads(pipe.recv_bytes())
    except EOFError:
        child = children.pop(pipe)
        child.join()
        if child.exitcode:
            raise PlatformError(f"a collector must end well, but it ended with {child.exitcode}") from None
        return
    if kind == "error":
        raise PlatformError(said)
    if kind == "paths":
        paths.extend(map(Path, said))
    else:
        {"tick": order.tick, "expect": order.expect}[kind](said)


def _child(pipe: Any, order: Order, share: Sequence[str]) -> None:
    """Speaks in pairs: tick and expect with a number, paths with files, error with a line. Ends when nobody listens."""

    def say(kind: str, what: Any) -> None:
        pipe.send_bytes(json.dumps([kind, what]).encode())

    own = replace(order, tick=partial(say, "tick"), expect=partial(say, "expect"))
    try:
        for model in share:
            say("paths", [str(path) for path in collect_model(own, model)])
    except BrokenPipeError:
        os._exit(1)
    except HspiError as error:
        say("error", str(error))
        pipe.close()
