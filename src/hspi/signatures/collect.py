"""Probes × platform → signatures, one file for each (model, probe set, nuisance); resumes after a kill.

Needs torch, transformers, pyarrow and numpy alone, so that it runs on a bare GPU server.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
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
from hspi.signatures.journal import Journal, to_batch
from hspi.signatures.schema import Header, read_header
from hspi.signatures.store import STORE, signature_path
from hspi.signatures.top_k import top_k

HELD_SECONDS = 0.05  # of finished work that a kill may cost
HELD_BYTES = 1 << 20  # more would leave the caches before it is read

Tick = Callable[[int], object]
Opener = Callable[[Platform, Path, int], Adapter]


@dataclass(frozen=True, slots=True)
class Job:
    """One signature to make."""

    platform: Platform
    model: str
    spec: ProbeSpec
    nuisance: Nuisance
    root: Path
    hardware: str = ""  # what answers; empty: this machine

    @property
    def path(self) -> Path:
        hardware = self.hardware or machine.hardware_here(self.platform).id
        return signature_path(
            self.root, hardware, self.platform.software, self.model, self.spec.name, self.nuisance.name
        )


def batches(size: int, nuisance: Nuisance) -> Iterator[np.ndarray]:
    """Probe ids that are served together, int64 (<= batch_size,), in the order of serving."""
    order = np.arange(size)
    if nuisance.company == "shuffled":
        order = np.random.default_rng(nuisance.seed).permutation(size)
    for start in range(0, size, nuisance.batch_size):
        yield order[start : start + nuisance.batch_size]


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
            for ids in batches(spec.size, header.nuisance):
                if journal.done.issuperset(ids.tolist()):
                    continue
                held.append((ids, adapter.logprobs([probe_set.contexts[i] for i in ids], spec.positions)))
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


def collect_model(
    platform: Platform, model: str, jobs: Sequence[Job], tick: Tick = lambda n: None, running: Opener | None = None
) -> list[Path]:
    """All jobs of one model in this process. Opens the engine only if something is left to do.

    running: gives the adapter of a server that runs already, wherever it is: then this machine's facts are none of it.
    """
    ref = zoo.resolve(model)
    tokenizer = zoo.load_tokenizer(ref)
    adapters: dict[int, Adapter] = {}
    for job in jobs:
        probe_set = probes.build(job.spec, tokenizer)
        if is_finished(job, ref.weights_hash, probe_set.hash):
            job.path.with_name(f"{job.path.name}.partial").unlink(missing_ok=True)  # of a kill just after the end
            tick(job.spec.size)
            continue
        threads = job.nuisance.threads
        if threads not in adapters:
            adapters[threads] = (running or open_adapter)(platform, ref.path, threads)
        adapter = adapters[threads]
        header = Header(
            platform=platform,
            model=ref.id,
            weights_hash=ref.weights_hash,
            probe_set=job.spec.name,
            probe_hash=probe_set.hash,
            nuisance=job.nuisance,
            positions=job.spec.positions,
            top_k=job.spec.top_k,
            facts={**({} if running else machine.platform_facts(platform)), **adapter.facts()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        collect_one(adapter, header, probe_set, job.path, tick)
    return [job.path for job in jobs]


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
) -> list[Path]:
    """Make the signatures of one platform of the catalogue; killed and called again, it goes on where it stopped.

    models: zoo ids, folders or hub ids; sets: names of probe sets; batch_sizes: of the nuisance settings; jobs:
    processes that share the models. What is left out comes from `params`. tick: is told how many probes more are done.
    Returns the files, OUT/<hardware>/<platform>/<model>/<set>.<nuisance>.parquet. One process runs one platform:
    libraries choose their code paths once. Raises PlatformError if this machine or process cannot run it, UnknownName,
    ModelError.
    """
    p = parameters.load(params)
    specs = [p.probes.spec(name) for name in sets or p.probes.sets]
    nuisances = [Nuisance(f"b{b}", b) for b in batch_sizes] or p.nuisances
    return collect_platform(platform, list(models or p.models), specs, nuisances, out, tick, jobs or p.collect.jobs)


def collect_platform(
    platform_id: str,
    models: Sequence[str],
    specs: Sequence[ProbeSpec],
    nuisances: Sequence[Nuisance],
    root: str | Path,
    tick: Tick = lambda n: None,
    processes: int = 1,
) -> list[Path]:
    """Every model × probe set × nuisance of one platform. Returns the files; finished ones are not made again.

    models: zoo ids, folders or hub ids; root: the store, where `signature_path` puts them; tick: is told how many
    probes were answered just now. The environment of this process becomes the platform's own. With more processes than
    one the models are shared among forked children, so that the engine's libraries are imported once.

    Raises UnknownName for a platform or model that is none, PlatformError if this machine or process cannot run the
    platform, ModelError where weights or tokenizer cannot be loaded.
    """
    platform = catalogue.get(platform_id)
    can = machine.availability(platform)
    if not can.runnable:
        raise PlatformError(f"platform {platform_id} must be runnable on this machine, but: {can.why_not}")
    machine.apply_env(platform)
    # Before the engine is imported: switching its thread pool for each call would cost as much as the call.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(n.threads for n in nuisances)))
    jobs = {m: [Job(platform, m, s, n, Path(root)) for s in specs for n in nuisances] for m in models}
    if processes > 1:
        import_engine(platform)
        _in_children(platform, jobs, [list(models[i::processes]) for i in range(min(processes, len(models)))], tick)
    else:
        for model in models:
            collect_model(platform, model, jobs[model], tick)
    return [job.path for some in jobs.values() for job in some]


def collect_running(
    platform: Platform,
    url: str,
    served: str,
    model: str,
    specs: Sequence[ProbeSpec],
    nuisances: Sequence[Nuisance],
    root: str | Path,
    tick: Tick = lambda n: None,
) -> list[Path]:
    """Signatures of a server that runs already at `url` (up to /v1), labelled as `platform`. Returns the files.

    Raises EndpointError where it does not answer with log-probabilities by token id.
    """
    from hspi.platforms.servers.endpoint import attach

    hardware = hardware_of(platform, {}).id  # of a machine of which only its label is known
    jobs = [Job(platform, model, s, n, Path(root), hardware) for s in specs for n in nuisances]
    return collect_model(platform, model, jobs, tick, lambda p, path, _: attach(url, served, p, path))


def _in_children(platform: Platform, jobs: dict[str, list[Job]], shares: Sequence[Sequence[str]], tick: Tick) -> None:
    """Fork a child for each share. The first that fails ends the others, and its error is raised here."""
    context = multiprocessing.get_context("fork")
    children = {}
    for share in shares:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(there, platform, share, jobs), daemon=True)
        child.start()
        there.close()
        children[here] = child
    try:
        while children:
            for pipe in connection.wait(list(children)):
                assert isinstance(pipe, connection.Connection)
                _hear(pipe, children, tick)
    finally:
        for child in children.values():
            child.terminate()
            child.join()


def _hear(pipe: connection.Connection, children: dict[Any, Any], tick: Tick) -> None:
    try:
        said = pipe.recv_bytes()
    except EOFError:
        child = children.pop(pipe)
        child.join()
        if child.exitcode:
            raise PlatformError(f"a collector must end well, but it ended with {child.exitcode}") from None
        return
    if said.isdigit():
        tick(int(said))
    else:
        raise PlatformError(said.decode())


def _child(pipe: Any, platform: Platform, share: Sequence[str], jobs: dict[str, list[Job]]) -> None:
    """Speaks in bytes: a number of probes, or one line of an error. Ends when nobody listens any more."""
    try:
        for model in share:
            collect_model(platform, model, jobs[model], lambda n: pipe.send_bytes(str(n).encode()))
    except BrokenPipeError:
        os._exit(1)
    except HspiError as error:
        pipe.send_bytes(str(error).encode())
        pipe.close()
