"""Signatures of several platforms of this machine, each made in a process of its own, as many at a time as cores carry.

A process runs one platform, because libraries choose their code paths once; and each is single-threaded, because the
threads of a sum are part of what is measured. Killed and started again, each goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from hspi.errors import PlatformError
from hspi.platforms import catalogue, machine
from hspi.signatures.store import STORE

Tick = Callable[[int], object]
Say = Callable[[str], object]


def at_once() -> int:
    """How many single-threaded collections this machine's cores carry: one for each that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runnable(platforms: Sequence[str], *, skip_unavailable: bool = False, say: Say = lambda line: None) -> list[str]:
    """Those that run here, once each, in their order; of each other one `say` is told why not.

    Raises UnknownName for a platform that is in no catalogue, and PlatformError for one that does not run here unless
    such are to be skipped.
    """
    found = []
    for platform in dict.fromkeys(platforms):
        can = machine.availability(catalogue.get(platform))
        if can.runnable:
            found.append(platform)
        elif skip_unavailable:
            say(f"{platform} skipped: {can.why_not}")
        else:
            raise PlatformError(f"platform {platform} must be runnable on this machine, but: {can.why_not}")
    return found


def hardware_of_here(platforms: Sequence[str]) -> list[str]:
    """The hardware, by id, whose datasets these platforms extend when this machine runs them."""
    return sorted({machine.hardware_here(catalogue.get(platform)).id for platform in platforms})


def collect_side_by_side(
    platforms: Sequence[str],
    options: Sequence[str] = (),
    *,
    out: str | Path = STORE,
    tick: Tick = lambda n: None,
    expect: Tick = lambda n: None,
    say: Say = lambda line: None,
    processes: int | None = None,
) -> None:
    """Run `hspi collect` for each of these platforms, `processes` at a time (as many as `at_once` says).

    options: further words for every one of them, as ("--model", "llama"). tick: is told how many probes more are done,
    of any platform; expect: how many more are to come than one setting has; say: which platform is done. Where one
    fails, the others are finished all the same. Raises PlatformError that names those which failed, with the reason of
    the first.
    """
    failed: dict[str, str] = {}
    children: list[subprocess.Popen[str]] = []
    lock = threading.Lock()

    def told(what: str, n: int) -> None:
        with lock:
            (tick if what == "probes" else expect)(n)

    def one(platform: str) -> None:
        try:
            collect_apart(platform, options, out=out, told=told, started=children.append)
        except PlatformError as error:
            failed[platform] = str(error)
        with lock:
            say(f"{platform} {'failed' if platform in failed else 'done'}")

    with ThreadPoolExecutor(processes or at_once()) as pool:
        try:
            wait([pool.submit(one, platform) for platform in platforms])
        except BaseException:  # Ctrl-C: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            raise
    if failed:
        why = failed[min(failed, key=list(platforms).index)]
        raise PlatformError(f"{len(platforms)} platforms must be collected, but {', '.join(failed)} failed: {why}")


def collect_apart(
    platform: str,
    options: Sequence[str] = (),
    *,
    out: str | Path = STORE,
    told: Callable[[str, int], object] = lambda what, n: None,
    started: Callable[[subprocess.Popen[str]], object] = lambda child: None,
) -> None:
    """`hspi collect` of one platform in a process of its own, single-threaded. Raises PlatformError with its last line.

    told: is given "probes" with how many more are done, "expect" with how many more are to come; started: is given the
    process. It ends soon after this one: nobody reads then what it says.
    """
    command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--out", str(out)]
    command += ["--jobs", "1", "--progress", "json", *options]
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        started(process)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                for what, n in _counts(line).items():
                    told(what, n)
            process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            complaints.seek(0)
            said = (complaints.read().strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
            raise PlatformError(said.removeprefix("Error: "))


def _counts(line: str) -> dict[str, int]:
    """What a line of `--progress json` counts; other lines are of libraries and count nothing."""
    try:
        return {what: int(n) for what, n in json.loads(line).items() if what in ("probes", "expect")}
    except (AttributeError, TypeError, ValueError):
        return {}
