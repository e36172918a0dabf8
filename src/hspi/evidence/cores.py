"""The same work on many things at once: for kernels, trees and linear machines, which hold no lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def on_all_cores(work: Callable[[Thing], Result], things: Iterable[Thing]) -> list[Result]:
    """The results in the order of the things, a thread for each core. Raises what the first failing one raised."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(work, things))
