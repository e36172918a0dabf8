"""Waiting sequences share adapter calls, as on a real server: an answer's arithmetic depends on its company."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hspi.platforms.record import Adapter, LogProbs


@dataclass(slots=True)
class _Step:
    context: npt.NDArray[np.int64]
    positions: int
    done: asyncio.Future[LogProbs]


@dataclass(slots=True)
class Batcher:
    """Groups waiting steps into adapter calls. Steps of one call ask for the same number of positions."""

    adapter: Adapter
    max_batch: int = 8
    served: list[int] = field(default_factory=list)  # sizes of the batches so far
    _waiting: deque[_Step] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def logprobs(self, context: npt.NDArray[np.int64], positions: int) -> LogProbs:
        """Float32 (positions, vocabulary), when its turn has come. Raises what the adapter raises."""
        step = _Step(context, positions, asyncio.get_running_loop().create_future())
        self._waiting.append(step)
        self._wake.set()
        return await step.done

    async def run(self) -> None:
        """Serve until cancelled. One call at a time, off the event loop."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as engine:
            while True:
                await self._wake.wait()
                await asyncio.sleep(0.001)  # lets requests that arrive together share a batch
                group = self._take()
                try:
                    found = await loop.run_in_executor(engine, self._serve, group)
                    for step, row in zip(group, found, strict=True):
                        if not step.done.done():
                            step.done.set_result(row)
                except Exception as error:  # one bad batch must not end the server
                    for step in group:
                        if not step.done.done():
                            step.done.set_exception(error)

    def _take(self) -> list[_Step]:
        positions = self._waiting[0].positions
        group = [s for s in self._waiting if s.positions == positions][: self.max_batch]
        chosen = set(map(id, group))
        self._waiting = deque(s for s in self._waiting if id(s) not in chosen)
        if not self._waiting:
            self._wake.clear()
        return group

    def _serve(self, group: list[_Step]) -> LogProbs:
        self.served.append(len(group))
        return self.adapter.logprobs([s.context for s in group], group[0].positions)
