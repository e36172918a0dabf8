"""A transformers model on a virtual GPU: its matrix products have the bits of an emulated matrix unit.

Nothing of a model is forked. While it runs, every torch function that it calls passes through a mode: linear layers
and attention products go to `hspi.numerics` with the architecture's arithmetic and a kernel plan; reductions and
transcendental functions are done in float64 and rounded to fp32, then to the storage type, so that the host's SIMD
width leaves no mark; what is element-wise torch does in fp32 and rounds by itself. A product of another kind is
refused, never left to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError, PlatformError
from hspi.numerics.batched import matmul_batched
from hspi.numerics.matmul import Packed, matmul, pack_b
from hspi.platforms.batches import BatchAdapter, Logits
from hspi.platforms.record import Platform
from hspi.platforms.virtual.catalogue import FP8_TYPES, TF32_TYPES, units_of
from hspi.platforms.virtual.plans import PlanBook
from hspi.zoo import load_model

STORAGE = {"fp16": "fp16", "bf16": "bf16", "tf32": "fp32"}
LARGEST = {"e4m3": 448.0, "e4m3fnuz": 240.0}
INSIDE = (  # functions done in float64, because each host's SIMD has its own last bit of them
    "softmax log_softmax silu gelu layer_norm rms_norm softplus tanh sigmoid exp log rsqrt sqrt cos sin mean sum var"
)
TORCH_FP8 = {"e4m3": "float8_e4m3fn", "e4m3fnuz": "float8_e4m3fnuz"}


class VirtualGpuAdapter(BatchAdapter):
    """One model on one virtual GPU. `platform.options`: `architecture`, `plan` (see `PlanBook.of`), and with fp8
    `weight_scale` (`tensor` or `channel`).

    `book` may be set between calls; the packed weights of each plan are kept until `forget`.
    Raises ConfigError where the architecture lacks the number type, ModelError where the folder holds no model.
    """

    def __init__(self, platform: Platform, model_path: Path, threads: int = 1) -> None:
        if platform.dtype not in STORAGE:
            raise ConfigError(f"dtype must be one of {', '.join(STORAGE)}, but got {platform.dtype!r}")
        self._platform, self._threads = platform, threads
        self._places: dict[int, str] = {}  # weights by address → `NxK#i`
        self._model = load_model(model_path, STORAGE[platform.dtype], "eager")
        self.vocab_size = int(self._model.config.get_text_config().vocab_size)
        self._head = self._model.get_output_embeddings().weight
        self.use(str(platform.options["architecture"]))
        self.book = PlanBook.of(platform.options.get("plan", "k1"))

    def use(self, architecture: str) -> None:
        """Another GPU's arithmetic for the same model and number type."""
        self.architecture = architecture
        layers, rest = units_of(replace(self._platform, options={"architecture": architecture}))
        self._layers, self._type = layers.input_type, rest.input_type
        self.forget()

    @property
    def places(self) -> list[str]:
        """Every weight used so far, as a plan book may name it."""
        return list(self._places.values())

    def forget(self) -> None:
        """Drop the packed weights."""
        self._packed: dict[tuple[int, str], tuple[Packed, Any]] = {}
        self.products: dict[str, int] = {}
        self.unrounded: Any = None  # what lm_head's last product was before the storage type rounded it

    def facts(self) -> dict[str, str]:
        return {"device": self._platform.device, "architecture_emulated": self.architecture, "silicon": "unverified"}

    def _logits(self, ids: npt.NDArray[np.int64], keep: int) -> Logits:
        import torch

        with torch.inference_mode(), _mode(self):
            logits = self._model(input_ids=torch.from_numpy(ids), use_cache=False, logits_to_keep=keep).logits
            return np.asarray(logits.to(torch.float32).numpy())

    # ------------------------------------------------------------ products; torch tensors in and out

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """(…, K)·(N, K)ᵀ + bias, added to the fp32 accumulator, in x's type."""
        import torch

        if x.dtype != self._model.dtype or weight.dtype != x.dtype:
            return _exact(torch.nn.functional.linear, x, weight, bias)
        head = weight.data_ptr() == self._head.data_ptr()
        product = "lm_head" if head else f"{weight.shape[0]}x{weight.shape[1]}"
        kind = self._type if head else self._layers
        rows, scale = self._operand(x.reshape(-1, x.shape[-1]), kind)
        packed, weight_scale = self._weight(weight, kind, product)
        out = matmul(rows, packed, self.architecture, kind, plan=packed.plan, threads=self._threads)
        self.products[product] = packed.shape[0]
        if kind in FP8_TYPES:
            out = out * scale * weight_scale
        result = torch.from_numpy(out)
        if bias is not None:
            result = result + bias.to(torch.float32)
        if head:
            self.unrounded = result
        return result.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])

    def product(self, a: Any, b: Any) -> Any:
        """torch.matmul of activations. A product with one term a sum is left in fp32: rotary angles."""
        import torch

        return torch.as_tensor(self._accumulated(a, b)).to(torch.promote_types(a.dtype, b.dtype))

    def _accumulated(self, a: Any, b: Any) -> Any:
        """The product in fp32, before it is rounded to the storage type."""
        import torch

        if a.dtype != self._model.dtype or b.dtype != a.dtype or a.dim() < 2 or b.dim() < 2 or a.shape[-1] == 1:
            return _exact(torch.matmul, a, b)
        product = "qk" if b.stride(-2) == 1 and b.stride(-1) != 1 else "pv"
        self.products[product] = a.shape[-1]
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left, right = (self._operand(t.expand(*batch, *t.shape[-2:]).flatten(0, -3), self._type)[0]
                       if batch else self._operand(t[None], self._type)[0] for t in (a, b))  # fmt: skip
        out = matmul_batched(left, right, self.architecture, self._type, self.book.plan_of(product))
        return torch.from_numpy(out).reshape(*batch, a.shape[-2], b.shape[-1])

    def attention(self, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, is_causal: bool = False,
                  scale: float | None = None, enable_gqa: bool = False) -> Any:  # fmt: skip
        """scaled_dot_product_attention: fp32 scores and softmax, probabilities in the storage type."""
        import torch

        if enable_gqa:
            k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scores = self._accumulated(q, k.transpose(-2, -1)).float() * (scale or q.shape[-1] ** -0.5)
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        return self.product(_exact(torch.softmax, scores, -1).to(q.dtype), v)

    def addmm(self, c: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
        """c + a·b with a weight b (K, N), as GPT-2's Conv1D has it."""
        if (alpha, beta) != (1, 1):
            raise PlatformError(f"addmm on a virtual GPU must have alpha = beta = 1, but got {alpha}, {beta}")
        return self.linear(a, b.t(), c)

    # ------------------------------------------------------------ operands: float32 NumPy, exact in the unit's type

    def _operand(self, x: Any, kind: str) -> tuple[npt.NDArray[np.float32], Any]:
        """Values and, for fp8, the dynamic scale of each row (…, 1)."""
        if kind in FP8_TYPES:
            return _to_fp8(x, kind, per_row=True)
        values = np.asarray(x.float().numpy())
        if kind in TF32_TYPES:  # the unit reads 19 of the 32 bits
            values = (np.ascontiguousarray(values).view(np.int32) & np.int32(-8192)).view(np.float32)
        return values, None

    def _weight(self, weight: Any, kind: str, product: str) -> tuple[Packed, Any]:
        place = self._places.setdefault(weight.data_ptr(), f"{product}#{len(self._places)}")
        key = (weight.data_ptr(), self.book.name_of(place))
        if key not in self._packed:
            per_row = self._platform.options.get("weight_scale") != "tensor"
            values, scale = _to_fp8(weight, kind, per_row) if kind in FP8_TYPES else self._operand(weight, kind)
            packed = pack_b(np.ascontiguousarray(values.T), self.architecture, kind, self.book.plan_of(place))
            self._packed[key] = packed, None if scale is None else scale.reshape(1, -1)
        return self._packed[key]


def _to_fp8(x: Any, kind: str, per_row: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """x (R, K) over its scale, rounded to nearest even: values float32, and the scale (R, 1) or (1, 1)."""
    import torch

    x = x.float()
    largest = x.abs().amax(-1, keepdim=True) if per_row else x.abs().amax().reshape(1, 1)
    scale = torch.where(largest > 0, largest / LARGEST[kind], torch.ones(()))
    scaled = (x / scale).clamp(-LARGEST[kind], LARGEST[kind])
    return scaled.to(getattr(torch, TORCH_FP8[kind])).float().numpy(), scale.numpy()


# ------------------------------------------------------------ the mode


def _exact(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In float64, rounded to fp32 and then to the type asked for (that of the first argument)."""
    import torch
    from torch.utils._pytree import tree_map

    def wide(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    given = args[0].dtype if isinstance(args[0], torch.Tensor) else kwargs["input"].dtype
    wanted = kwargs.pop("dtype", None) or given
    result = function(*tree_map(wide, args), **tree_map(wide, kwargs))
    return result.to(torch.float32).to(wanted) if result.dtype == torch.float64 else result


def _mode(gpu: VirtualGpuAdapter) -> Any:
    import torch
    from torch.nn import functional as f
    from torch.overrides import TorchFunctionMode

    tensor = torch.Tensor
    products: dict[Any, Callable[..., Any]] = {
        f.linear: gpu.linear,
        f.scaled_dot_product_attention: gpu.attention,
        **dict.fromkeys((torch.addmm, tensor.addmm), gpu.addmm),
        **dict.fromkeys(
            (torch.matmul, tensor.matmul, tensor.__matmul__, torch.bmm, tensor.bmm, torch.mm, tensor.mm), gpu.product
        ),
    }
    refused = {torch.einsum, torch.baddbmm, tensor.baddbmm, f.bilinear, f.conv1d, f.conv2d, torch.conv1d, torch.conv2d}
    if grouped := getattr(torch, "_grouped_mm", None):
        refused.add(grouped)
    inside = {getattr(where, n) for where in (f, torch, tensor) for n in INSIDE.split() if hasattr(where, n)}

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in products:
                return products[func](*args, **kwargs)
            if func in refused:
                raise PlatformError(f"a virtual GPU must know every product, but the model calls {func.__name__}")
            if func in inside and _floating(args, kwargs):
                return _exact(func, *args, **kwargs)
            return func(*args, **kwargs)

    return Mode()


def _floating(args: Any, kwargs: Any) -> bool:
    x = args[0] if args else kwargs.get("input")
    return bool(getattr(x, "is_floating_point", lambda: False)())
