"""Models in another engine's own format, made once for each set of weights and kept under `.cache/hspi/<hash>/`.

A conversion runs in a process of its own, without any platform's variables: what one platform converts, every other
then reads, so no cap may leave a trace in it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from hspi.errors import PlatformError
from hspi.platforms.machine import ISA_VARIABLES
from hspi.quiet import complaint
from hspi.zoo import DTYPES, load_model, weights_hash

# Kind of conversion → the distributions whose versions decide its outcome.
KINDS = {
    "onnx": ("torch", "transformers", "onnxscript"),
    "onnx-int8": ("onnx", "onnxruntime"),
    "onnx-int4": ("onnx", "onnxruntime"),
    "ctranslate2": ("transformers", "ctranslate2"),
}


def cache_folder() -> Path:
    """`HSPI_CACHE`, or `.cache/hspi` in the working directory."""
    return Path(os.environ.get("HSPI_CACHE", ".cache/hspi"))


def converted(kind: str, model_path: Path) -> Path:
    """Folder of the converted model; makes it when it is not there. Raises PlatformError when conversion fails."""
    versions = "-".join(metadata.version(name) for name in KINDS[kind])
    target = cache_folder() / weights_hash(model_path)[:16] / f"{kind}-{versions}"
    return made_once(target, lambda unfinished: _convert_in_own_process(kind, model_path, unfinished))


def made_once(target: Path, make: Callable[[Path], object]) -> Path:
    """The folder `target`; where it is not there, `make` fills an unfinished one, which then takes its name."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        make(unfinished)
        try:
            unfinished.rename(target)
        except OSError:  # another process finished first; its result is as good
            if not target.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _convert_in_own_process(kind: str, model_path: Path, out: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ISA_VARIABLES} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hspi.platforms.convert", kind, str(model_path), str(out)]
    if why := complaint(command, env=clean):
        raise PlatformError(f"{model_path} must convert to {kind}, but: {why}")


def convert(kind: str, model_path: Path, out: Path) -> None:
    """Writes the model at `model_path` as `kind` (a key of `KINDS`) into the folder `out`."""
    {"onnx": _to_onnx, "onnx-int8": _to_onnx_int8, "onnx-int4": _to_onnx_int4, "ctranslate2": _to_ctranslate2}[kind](
        model_path, out
    )


def _to_onnx(model_path: Path, out: Path) -> None:
    """int64 ids (batch, length) → float32 logits (batch, length, vocabulary); no cache, both axes free."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids, use_cache=False).logits

    model = load_model(model_path, "fp32", "sdpa")
    longest = int(model.config.max_position_embeddings)
    free = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("length", min=1, max=longest)}
    sample = torch.arange(2 * 8).reshape(2, 8) % model.config.vocab_size
    torch.onnx.export(
        Logits(model).eval(),
        (sample,),
        out / "model.onnx",
        dynamo=True,
        input_names=["ids"],
        output_names=["logits"],
        dynamic_shapes={"ids": free},
        external_data=False,
        verbose=False,
    )


def _to_onnx_int8(model_path: Path, out: Path) -> None:
    """ONNX Runtime's dynamic quantization: int8 weights for each tensor, activations measured as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = converted("onnx", model_path) / "model.onnx"
    quantize_dynamic(source, out / "model.onnx", weight_type=QuantType.QInt8)


def _to_onnx_int4(model_path: Path, out: Path) -> None:
    """ONNX Runtime's MatMulNBits: 4-bit weights in blocks of 32, float activations."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    source = onnx.load(converted("onnx", model_path) / "model.onnx")
    quantizer = MatMulNBitsQuantizer(source, block_size=32, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"))


def _to_ctranslate2(model_path: Path, out: Path) -> None:
    """CTranslate2's own converter, told only what it wants of a tokenizer: a name for each id."""
    import torch
    from ctranslate2.converters import TransformersConverter

    names = {getattr(torch, name): dtype for dtype, name in DTYPES.items()}

    class Ids:
        bos_token, eos_token, unk_token, pad_token = "0", "1", "2", "0"

        def __init__(self, size: int) -> None:
            self.size = size

        def get_vocab(self) -> dict[str, int]:
            return {str(i): i for i in range(self.size)}

    class Converter(TransformersConverter):
        def load_model(self, model_class: Any, model_name_or_path: str, dtype: Any = None, **kwargs: Any) -> Any:
            model = load_model(model_path, names.get(dtype, "fp32"), "sdpa")
            self.size = model.config.vocab_size
            if model.config.model_type == "gpt_neox":  # two names that transformers 5 changed
                model.config.rotary_pct = model.config.rope_parameters["partial_rotary_factor"]
                model.embed_out = model.lm_head
            return model

        def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Ids:
            return Ids(self.size)

    Converter(str(model_path)).convert(str(out), force=True)


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
