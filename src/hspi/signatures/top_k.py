"""The k most likely tokens of each context: ties by the lower id, whatever the machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError


def top_k(logprobs: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The k most likely tokens of each row: ids int32 and log-probabilities float32, (…, k); ties by the lower id.

    A server may keep tokens to itself: they stand at -inf, and are never among the k. Raises DataError if another value
    is not finite, fewer than k are left, or k exceeds the vocabulary.
    """
    if not 1 <= k <= logprobs.shape[-1]:
        raise DataError(f"`1 <= top_k <= vocabulary` must hold, but got top_k={k}, vocabulary={logprobs.shape[-1]}")
    rows = np.ascontiguousarray(logprobs, dtype=np.float32).reshape(-1, logprobs.shape[-1])
    ids = _best_first(rows, k)
    values = np.take_along_axis(rows, ids, axis=-1)
    if not np.isfinite(values[:, -1]).all():
        raise DataError(f"{k} finite log-probabilities must come for each context, but some got fewer")
    return ids.reshape(*logprobs.shape[:-1], k), values.reshape(*logprobs.shape[:-1], k)


_CACHED_ROWS = 16  # at a time, so that their keys stay in cache


def _best_first(rows: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int32]:
    """Ids of the k largest values of each row, ties by the lower id: the k least of keys (bits of the value, id).

    One buffer holds the keys of all blocks: fresh ones would be pages that the system gives and takes back each time.
    """
    n, vocab = rows.shape
    order, tokens = _falling(rows), np.arange(vocab, dtype=np.uint64)
    keys = np.empty((min(n, _CACHED_ROWS), vocab), np.uint64)
    best = np.empty((n, k), np.int32)
    for start in range(0, n, _CACHED_ROWS):
        part = order[start : start + _CACHED_ROWS]
        own = keys[: len(part)]
        own[...] = part
        np.left_shift(own, np.uint64(32), out=own)
        np.bitwise_or(own, tokens, out=own)
        own.partition(k - 1, axis=-1)
        best[start : start + len(part)] = np.sort(own[:, :k], axis=-1).astype(np.uint32)
    return best


def _falling(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Integers in the opposite order of the values. The bits of negative floats, read as integers, are that already;
    where one is not negative those are turned round, with -0 no less than 0. Raises DataError at a NaN or +inf.
    """
    highest = rows.max(initial=-np.inf)
    if highest < 0:
        return rows.view(np.uint32)
    if not highest < np.inf:
        raise DataError("log-probabilities must be finite, but some are not")
    rows = rows + np.float32(0)
    return rows.view(np.uint32) ^ (~(rows.view(np.int32) >> 31)).view(np.uint32) & np.uint32(0x7FFFFFFF)
