"""What a number format would do to the answers: the same model with its weights rounded, less the model as it is.

With open weights an error need not only be measured, it can be foretold. Each hypothesis is emulated in float32, whose
own rounding is a thousandth of any of these. An observed residual that lies along a foretold one names the format on
a model never seen, whatever the size of its errors. The rules are those of the libraries named beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from hspi.errors import DataError
from hspi.platforms.quantized import linear_layers
from hspi.platforms.record import Context
from hspi.zoo import ModelRef, load_model

if TYPE_CHECKING:
    from torch import Tensor

Rounder = Callable[["Tensor"], "Tensor"]
Predicted = npt.NDArray[np.float32]

VERSION = 1  # raise when the same model and probes would give other predictions
BATCH = 96  # contexts; bounds memory alone


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Which numbers are rounded, and how: weights of linear layers, what enters them, what any layer gives.

    format: the number format, as `detectors.number_format` names it; head: the last layer and the embedding are
    `kept`; the last is rounded where its weights are its `own`, not the embedding's; or `all` are rounded.
    """

    name: str
    format: str
    weights: Rounder | None = None
    inputs: Rounder | None = None
    outputs: Rounder | None = None
    head: Literal["kept", "own", "all"] = "kept"


# Roundings. Weights are float32 (out, in), activations (batch, length, features).


def symmetric(divisor: float, low: int, high: int, axes: tuple[int, ...] = (-1,)) -> Rounder:
    """Integers low…high times a scale, the largest magnitude over `axes` divided by `divisor`."""

    def rounded(x: Tensor) -> Tensor:
        scale = x.abs().amax(axes, keepdim=True).clamp(min=1e-30) / divisor
        return (x / scale).round().clamp(low, high) * scale

    return rounded


def zero_pointed(levels: int) -> Rounder:
    """Integers 0…levels with a zero point, over each sequence: the range always holds 0."""

    def rounded(x: Tensor) -> Tensor:
        low, high = x.amin((1, 2), keepdim=True).clamp(max=0), x.amax((1, 2), keepdim=True).clamp(min=0)
        scale = (high - low).clamp(min=1e-30) / levels
        zero = (-low / scale).round()
        return ((x / scale).round() + zero).clamp(0, levels).sub(zero) * scale

    return rounded


def in_blocks(size: int, rounder: Rounder) -> Rounder:
    """`rounder` over (blocks, size), blocks cut along the input axis; the last one of a row is padded with zeros."""

    def rounded(x: Tensor) -> Tensor:
        from torch.nn.functional import pad

        columns = x.shape[1]
        padded = pad(x, (0, -columns % size))
        return rounder(padded.reshape(-1, size)).reshape(padded.shape)[:, :columns]

    return rounded


def _signed_int4(x: Tensor) -> Tensor:
    """The element of largest magnitude, with its sign, becomes -8: ONNX Runtime's MatMulNBits, symmetric."""
    scale = x.gather(1, x.abs().argmax(1, keepdim=True)) / -8
    return ((x / scale).round().clamp(-8, 7) * scale).nan_to_num()


def _half_quadratic(x: Tensor) -> Tensor:
    """HQQ (Badri and Shaji 2023): 4 bits over a block's range; the zero point then minimises an l_0.7 error.

    Half-quadratic steps with β = 10 growing by 1.01, at most 20, until the mean error grows: hqq's defaults.
    """
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = (15 / (high - low)).clamp(max=2e4)
    zero = (-low * scale).round()
    best, beta = float("inf"), 10.0
    for _ in range(20):
        codes = (x * scale + zero).round().clamp(0, 15)
        error = x - (codes - zero) / scale
        shrunk = error.sign() * (error.abs() - error.abs().pow(-0.3) / beta).clamp(min=0)
        zero = (codes - (x - shrunk) * scale).mean(1, keepdim=True)
        beta *= 1.01
        size = float(error.abs().mean())
        if size >= best:
            break
        best = size
    return ((x * scale + zero).round().clamp(0, 15) - zero) / scale


def normal_quantiles() -> list[float]:
    """NF4's 16 values (Dettmers et al. 2023, appendix E): quantiles of N(0, 1), asymmetric about an exact 0."""
    from statistics import NormalDist

    edge = 0.9677083  # bitsandbytes' outermost probability
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(edge, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(edge, 0.5, 8)[:-1]]
    return [v / positive[0] for v in sorted([*negative, 0.0, *positive])]


def _nearest_normal_quantile(x: Tensor) -> Tensor:
    import torch

    values = torch.tensor(normal_quantiles())
    scale = x.abs().amax(1, keepdim=True)
    return values[torch.bucketize(x / scale.clamp(min=1e-30), (values[1:] + values[:-1]) / 2)] * scale


def small_float(fraction_bits: int, lowest_exponent: int, largest: float) -> Rounder:
    """A float of few bits with one scale for each row, which takes its largest magnitude to `largest`."""

    def rounded(x: Tensor) -> Tensor:
        import torch

        scale = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / largest
        exponent = (torch.frexp(x / scale)[1] - 1).clamp(min=lowest_exponent)
        quantum = torch.exp2((exponent - fraction_bits).float())
        return (x / scale / quantum).round() * quantum * scale

    return rounded


def _mxint8(x: Tensor) -> Tensor:
    """OCP Microscaling 1.0: a block's scale is the power of two of its largest magnitude; elements are n / 64."""
    import torch

    exponent = torch.frexp(x.abs().amax(1, keepdim=True))[1] - 1
    quantum = torch.exp2((exponent - 6).float())
    return (x / quantum).round().clamp(-127, 127) * quantum


def _bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


_CHANNEL = symmetric(127, -127, 127)
_TENSOR = symmetric(127, -127, 127, (0, 1))
_WIDE_TENSOR = symmetric(127.5, -128, 127, (0, 1))
HYPOTHESES = (
    Hypothesis("int8-channel", "int8", _CHANNEL),  # quanto
    Hypothesis("int8-channel-wide", "int8", symmetric(127.5, -128, 127)),  # torchao: its range is ±127.5
    Hypothesis("int8-token", "int8", _CHANNEL, inputs=_CHANNEL, head="all"),  # CTranslate2
    Hypothesis("int8-tensor", "int8", _TENSOR, zero_pointed(255), head="own"),  # ONNX Runtime
    Hypothesis("int8-tensor-7", "int8", _WIDE_TENSOR, zero_pointed(127)),  # PyTorch on x86: 7 bits enter
    Hypothesis("int4-channel", "int4", symmetric(7.5, -8, 7)),  # torchao
    Hypothesis("int4-block-32", "int4", in_blocks(32, _signed_int4), head="own"),  # ONNX Runtime
    Hypothesis("int4-hqq-64", "int4", in_blocks(64, _half_quadratic)),
    Hypothesis("nf4-block-64", "nf4", in_blocks(64, _nearest_normal_quantile)),  # bitsandbytes
    Hypothesis("fp8-e4m3", "fp8-e4m3", small_float(3, -6, 448.0)),
    Hypothesis("fp8-e3m4", "fp8-e3m4", small_float(4, -2, 15.5)),
    Hypothesis("mxint8", "mxint8", in_blocks(32, _mxint8)),
    Hypothesis(
        "bf16", "bf16", outputs=_bf16
    ),  # every layer's result; the size of its errors is the ruler of all others
)
NAMES = tuple(h.name for h in HYPOTHESES)


# What they foretell.


def predicted(
    ref: ModelRef,
    contexts: list[Context],
    tokens: npt.NDArray[np.int32],
    hypotheses: tuple[Hypothesis, ...] = HYPOTHESES,
) -> Predicted:
    """Logits after each context under each hypothesis less those of the model as it is.

    contexts: n arrays of token ids, int64, of one length; tokens int32 (n, K): which logits. Returns float32
    (len(hypotheses), n, K). Raises DataError for contexts of several lengths, ModelError for a model that cannot be
    loaded.
    """
    lengths = sorted({len(c) for c in contexts})
    if len(lengths) != 1:
        raise DataError(f"contexts must be of one length, but they are of {lengths}")
    model = load_model(ref.path, "fp32", "sdpa")
    at = tokens.astype(np.int64)
    plain = np.take_along_axis(_logits(model, contexts), at, axis=1)
    out = np.empty((len(hypotheses), *tokens.shape), np.float32)
    for i, hypothesis in enumerate(hypotheses):
        with rounded(model, hypothesis):
            out[i] = np.take_along_axis(_logits(model, contexts), at, axis=1) - plain
    return out


@contextmanager
def rounded(model: Any, hypothesis: Hypothesis) -> Iterator[None]:
    """Within, the model computes under the hypothesis; afterwards it is as it was, bit for bit."""
    from torch import Tensor

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    layers = list(linear_layers(model).values())
    own = head.weight.data_ptr() != embedding.weight.data_ptr()
    if hypothesis.head == "all" or (hypothesis.head == "own" and own):
        layers.append(head)
    holders = [*layers, embedding] if hypothesis.head == "all" and own else layers
    before = [layer.weight.data for layer in holders]
    hooks: list[Any] = []

    def enter(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        assert hypothesis.inputs is not None
        return (hypothesis.inputs(arguments[0]), *arguments[1:])

    def leave(_: Any, arguments: Any, result: Any) -> Any:
        assert hypothesis.outputs is not None
        return hypothesis.outputs(result) if isinstance(result, Tensor) else tuple(map(hypothesis.outputs, result))

    try:
        if hypothesis.weights is not None:
            for layer, weight in zip(holders, before, strict=True):
                layer.weight.data = hypothesis.weights(weight)
        if hypothesis.inputs is not None:
            hooks += [layer.register_forward_pre_hook(enter) for layer in layers]
        if hypothesis.outputs is not None:
            leaves = [m for m in model.modules() if next(m.children(), None) is None]
            hooks += [m.register_forward_hook(leave) for m in leaves]
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, weight in zip(holders, before, strict=True):
            layer.weight.data = weight


def _logits(model: Any, contexts: list[Context]) -> npt.NDArray[np.float64]:
    import torch

    parts = []
    with torch.inference_mode():
        for i in range(0, len(contexts), BATCH):
            ids = torch.from_numpy(np.stack(contexts[i : i + BATCH]))
            parts.append(model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].double().numpy())
    return np.concatenate(parts)
