"""What every engine shares, so that two engines differ in their logits and in nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError
from hspi.platforms.record import Context, LogProbs

Logits = npt.NDArray[np.float32]
PAD_ID = 0


def log_softmax(logits: npt.ArrayLike) -> LogProbs:
    """Log-softmax over the last axis, float32 in and out.

    Only the normaliser is summed in float64: NumPy picks its float32 `exp` by the SIMD width of the host, and the host
    that does this sum must leave no mark of its own.
    """
    shifted = np.asarray(logits, dtype=np.float32)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(shifted, dtype=np.float64).sum(axis=-1, keepdims=True))
    return shifted - normaliser.astype(np.float32)


def pad_right(contexts: list[Context]) -> npt.NDArray[np.int64]:
    """Contexts as one array, int64 (B, longest): shorter ones end in `PAD_ID`."""
    ids = np.full((len(contexts), max(map(len, contexts))), PAD_ID, dtype=np.int64)
    for row, context in zip(ids, contexts, strict=True):
        row[: len(context)] = context
    return ids


def check_contexts(contexts: list[Context], positions: int, vocab_size: int) -> None:
    """Raises DataError unless there is a context, each holds `positions` tokens, and every id is in the vocabulary."""
    shortest = min(map(len, contexts), default=0)
    if not 1 <= positions <= shortest:
        raise DataError(
            f"`1 <= positions <= len(context)` must hold for a batch that is not empty, "
            f"but got positions={positions}, shortest context {shortest}, batch of {len(contexts)}"
        )
    low, high = min(int(np.min(c)) for c in contexts), max(int(np.max(c)) for c in contexts)
    if low < 0 or high >= vocab_size:
        raise DataError(f"token ids must lie in 0..{vocab_size - 1}, but got {low}..{high}")


class BatchAdapter(ABC):
    """An `Adapter` for engines that turn a padded batch of ids into logits; a subclass supplies `_logits`."""

    vocab_size: int

    @abstractmethod
    def _logits(self, ids: npt.NDArray[np.int64], keep: int) -> Logits:
        """Logits after each of the last `keep` columns of ids (B, L): float32 (B, keep, vocab_size)."""

    @abstractmethod
    def facts(self) -> dict[str, str]: ...

    def logprobs(self, contexts: list[Context], positions: int) -> LogProbs:
        """See `Adapter.logprobs`. Raises DataError on an empty batch, a short context or an id out of range."""
        return log_softmax(self._last_logits(contexts, positions))

    def greedy(self, contexts: list[Context], new_tokens: int) -> npt.NDArray[np.int64]:
        """See `Adapter.greedy`. The whole context is read again for each token: no cache takes part."""
        return continue_greedily(self._last_logits, contexts, new_tokens)

    def _last_logits(self, contexts: list[Context], positions: int) -> Logits:
        check_contexts(contexts, positions, self.vocab_size)
        lengths = np.array([len(c) for c in contexts])
        longest = int(lengths.max())
        keep = longest - int(lengths.min()) + positions
        logits = self._logits(pad_right(contexts), keep)
        last = lengths - longest + keep  # column just past each context's own last token
        columns = last[:, None] + np.arange(-positions, 0)
        return logits[np.arange(len(contexts))[:, None], columns]


def continue_greedily(
    scores: Callable[[list[Context], int], npt.NDArray[np.float32]], contexts: list[Context], new_tokens: int
) -> npt.NDArray[np.int64]:
    """Tokens that follow each context, int64 (B, new_tokens): the best by `scores(contexts, 1)`, one after another."""
    grown = [np.asarray(c, dtype=np.int64) for c in contexts]
    for _ in range(new_tokens):
        chosen = scores(grown, 1)[:, 0].argmax(axis=-1)
        grown = [np.append(c, t) for c, t in zip(grown, chosen, strict=True)]
    return np.stack([g[len(c) :] for g, c in zip(grown, contexts, strict=True)])
