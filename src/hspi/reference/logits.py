"""What the model says when arithmetic is not the question: its logits and log-probabilities in float64.

transformers' models drop to float32 on their own in norms, softmax and rotary angles, whatever the model's dtype.
Here every such request is answered in float64, and a result in any other floating type is an error, so the promise is
checked on each operation. Rotary frequencies are float64 too: what a platform loses on them is part of its residual.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.errors import ModelError
from hspi.platforms.batches import check_contexts, pad_right
from hspi.platforms.record import Context
from hspi.zoo import ModelRef, load_model

Reference = npt.NDArray[np.float64]

VERSION = 2  # raise when the same model and probes would give another reference
BATCH = 32  # contexts; bounds memory alone
SLOTS = 64  # tokens that are compared: the likeliest after a context


def reference_logits(ref: ModelRef, contexts: list[Context], positions: int) -> Reference:
    """Next-token logits after each of the last `positions` tokens of each context.

    contexts: n arrays of token ids, int64, each of length >= positions. Returns float64 (n, positions, vocab_size);
    position -1 follows the whole context. Raises DataError for contexts that do not fit, ModelError for a model that
    cannot be loaded or does not stay in float64.
    """
    check_contexts(contexts, positions, ref.vocab_size)
    model = _float64_model(ref)
    batches = [contexts[i : i + BATCH] for i in range(0, len(contexts), BATCH)]
    with _float64_everywhere():
        return np.concatenate([_batch_logits(model, batch, positions) for batch in batches])


def reference_logprobs(ref: ModelRef, contexts: list[Context], positions: int) -> Reference:
    """The log-probabilities of `reference_logits`; shapes and errors are the same."""
    logits = reference_logits(ref, contexts, positions)
    return logits - normaliser(logits)[..., None]


def normaliser(logits: Reference) -> Reference:
    """log Σ exp over the vocabulary, (..., vocab) → (...): a log-probability and this make the logit again."""
    largest = logits.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0])


def likeliest(reference: npt.NDArray[np.float64], count: int = SLOTS) -> npt.NDArray[np.int32]:
    """Token ids of the `count` largest logits or log-probabilities of each row, (P, count), likeliest first."""
    return np.argsort(-reference, axis=1, kind="stable")[:, :count].astype(np.int32)


def _batch_logits(model: Any, contexts: list[Context], positions: int) -> Reference:
    import torch

    with torch.inference_mode():
        logits = model(torch.from_numpy(pad_right(contexts)), use_cache=False).logits
        last = torch.tensor([len(c) for c in contexts])[:, None] + torch.arange(-positions, 0)
        rows = torch.arange(len(contexts))[:, None]
        return np.asarray(logits[rows, last].numpy())


def _float64_model(ref: ModelRef) -> Any:
    """The model built anew under the rule, so that what is computed while building (rotary) is float64 too."""
    import torch
    from transformers import AutoModelForCausalLM

    weights = load_model(ref.path, "fp64", "eager")
    with _float64_everywhere():
        model = AutoModelForCausalLM.from_config(weights.config, dtype=torch.float64, attn_implementation="eager")
        model.load_state_dict(weights.state_dict())
    return model.eval()


@contextmanager
def _float64_everywhere() -> Iterator[None]:
    """Within, every floating type that torch is asked for is float64. Raises ModelError where another one comes out."""
    import torch
    from torch.overrides import TorchFunctionMode

    lower = {torch.float32, torch.float16, torch.bfloat16}
    casts = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}

    def raised(value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value in lower else value

    class Float64Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in casts:
                func = torch.Tensor.double
            result = func(*map(raised, args), **{k: raised(v) for k, v in (kwargs or {}).items()})
            if isinstance(result, torch.Tensor) and result.is_floating_point() and result.dtype != torch.float64:
                raise ModelError(f"the reference must stay in float64, but {func.__name__} gave {result.dtype}")
            return result

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64Mode():
            yield
    finally:
        torch.set_default_dtype(before)
