"""Weight formats for a PyTorch model: those of maintained quantization libraries, and formats emulated in fp32.

Every linear layer but the last (`lm_head`) is quantized, whatever the library, so that formats are compared on the
same layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError

KEPT = ("lm_head", "embed_out")
Weights = npt.NDArray[np.float32]


def quantize(model: Any, quantizer: str) -> Any:
    """`model` with its linear layers replaced, in place where the library can; raises ConfigError on another name."""
    if quantizer in ROUNDERS:
        return _emulate(model, ROUNDERS[quantizer])
    if quantizer not in QUANTIZERS:
        known = ", ".join(sorted({*QUANTIZERS, *ROUNDERS}))
        raise ConfigError(f"quantizer must be one of {known}, but got {quantizer!r}")
    return QUANTIZERS[quantizer](model)


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers that are quantized, by their full name."""
    import torch

    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {name: layer for name, layer in found.items() if name.rpartition(".")[2] not in KEPT}


# Libraries. Each takes the model and gives it back.


def _torch_dynamic(backend: str) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        import torch

        torch.backends.quantized.engine = backend
        spec = dict.fromkeys(linear_layers(model), torch.ao.quantization.default_dynamic_qconfig)
        return torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8)

    return apply


def _torchao(config: str, **settings: str) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        import torch
        from torchao import quantization

        names = linear_layers(model)
        quantization.quantize_(
            model,
            getattr(quantization, config)(**{key: getattr(torch, name) for key, name in settings.items()}),
            filter_fn=lambda _, name: name in names,
        )
        return model

    return apply


def _quanto(weights: str) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        from optimum import quanto

        quanto.quantize(model, weights=getattr(quanto, weights), exclude=[f"*{name}" for name in KEPT])
        quanto.freeze(model)
        return model

    return apply


def _bitsandbytes(quant_type: str) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        import torch
        from bitsandbytes.nn import Linear4bit, Params4bit

        for name, layer in linear_layers(model).items():
            new = Linear4bit(
                layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type=quant_type,
                compute_dtype=layer.weight.dtype,
            )  # fmt: skip
            new.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type=quant_type)
            if layer.bias is not None:
                new.bias = torch.nn.Parameter(layer.bias.data, requires_grad=False)
            model.set_submodule(name, new)
        return model.to("cpu")

    return apply


def _hqq(bits: int) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        for name, layer in linear_layers(model).items():
            config = BaseQuantizeConfig(nbits=bits, group_size=64)
            model.set_submodule(name, HQQLinear(layer, config, compute_dtype=layer.weight.dtype, device="cpu"))
        return model

    return apply


QUANTIZERS: dict[str, Callable[[Any], Any]] = {
    "torch-int8-x86": _torch_dynamic("x86"),
    "torch-int8-qnnpack": _torch_dynamic("qnnpack"),
    "torchao-int8wo": _torchao("Int8WeightOnlyConfig"),
    "torchao-int8dyn": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao-fp8wo": _torchao("Float8WeightOnlyConfig"),
    "torchao-fp8dyn": _torchao("Float8DynamicActivationFloat8WeightConfig"),
    "torchao-int4wo": _torchao("IntxWeightOnlyConfig", weight_dtype="int4"),
    "torchao-8da4w": _torchao("Int8DynamicActivationIntxWeightConfig", weight_dtype="int4"),
    "quanto-int8": _quanto("qint8"),
    "quanto-fp8": _quanto("qfloat8"),
    "bitsandbytes-nf4": _bitsandbytes("nf4"),
    "bitsandbytes-fp4": _bitsandbytes("fp4"),
    "hqq-int4": _hqq(4),
}


# Emulated formats: the weights are rounded to the format and used as the fp32 numbers that they then are.


def _emulate(model: Any, rounder: Callable[[Weights], Weights]) -> Any:
    import torch

    for layer in linear_layers(model).values():
        weight = layer.weight.data
        rounded = torch.from_numpy(rounder(weight.to(torch.float32).numpy()))
        layer.weight.data = rounded.to(weight.dtype)
    return model


def round_float8(weight: Weights, dtype: str) -> Weights:
    """Weights rounded to an 8-bit float of `ml_dtypes` with one scale for each output row: float32 (out, in)."""
    import ml_dtypes

    kind = getattr(ml_dtypes, dtype)
    largest = np.float32(ml_dtypes.finfo(kind).max)
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / largest
    return (weight / scale).astype(kind).astype(np.float32) * scale


def round_mx(weight: Weights, format_name: str) -> Weights:
    """Weights rounded to a block format of gfloat along the input axis: float32 (out, in).

    Follows the OCP Microscaling specification 1.0: a block shares the power of two that brings its largest magnitude
    to the element format's largest exponent; elements round to nearest even and saturate.
    Raises ConfigError when the input axis is no multiple of the block.
    """
    import gfloat
    from gfloat import formats

    block = getattr(formats, f"format_info_{format_name}")
    rows, columns = weight.shape
    if columns % block.k:
        raise ConfigError(f"the input axis must be a multiple of {block.k} for {format_name}, but is {columns}")
    blocks = weight.reshape(rows, -1, block.k).astype(np.float64)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    exponent = np.frexp(largest)[1] - 1 - block.etype.emax  # floor(log2(largest)), exactly
    scale = np.exp2(np.where(largest == 0, -127, exponent).clip(-127, 127))
    rounded = gfloat.round_ndarray(block.etype, blocks / scale, gfloat.RoundMode.TiesToEven, sat=True) * scale
    return rounded.reshape(rows, columns).astype(np.float32)


ROUNDERS: dict[str, Callable[[Weights], Weights]] = {
    "fp8-e4m3": lambda w: round_float8(w, "float8_e4m3fn"),
    "fp8-e3m4": lambda w: round_float8(w, "float8_e3m4"),
    "mxint8": lambda w: round_mx(w, "mxint8"),
    "mxfp4": lambda w: round_mx(w, "mxfp4_e2m1"),
}
