"""From a transformers folder to a GGUF file, by llama.cpp's own converter. For the environment .envs/llama-cpp.

Usage: python llama_convert.py FOLDER FORMAT FILE, where FORMAT is f32, f16, bf16, q8_0 or q4_0. What the converter does
not know of these models is told it here:

- a byte-level BPE tokenizer that is in no list of hashes splits as GPT-2's does (ByteLevel with its regex);
- such a tokenizer in a Gemma model, where the converter looks for SentencePiece;
- GPT-NeoX's share of rotary dimensions, which transformers 5 keeps in `rope_parameters`.

`q4_0` rounds every matrix to Q4_0 but the embeddings and the output, which stay Q8_0: the gguf package has no Q6_K,
which llama-quantize would give them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import convert_hf_to_gguf
import gguf
from conversion.base import TextModel
from conversion.gemma import GemmaModel
from conversion.gptneox import GPTNeoXModel

KEPT_FINER = ("token_embd.weight", "output.weight")


def main(folder: Path, kind: str, file: Path) -> None:
    _teach(json.loads((folder / "tokenizer.json").read_text("utf-8")))
    if kind == "q4_0":
        TextModel.tensor_force_quant = _q4_0
    sys.argv = ["convert", str(folder), "--outtype", "q8_0" if kind == "q4_0" else kind, "--outfile", str(file)]
    convert_hf_to_gguf.main()


def _teach(tokenizer: dict[str, Any]) -> None:
    known = TextModel.get_vocab_base_pre
    splits = tokenizer.get("pre_tokenizer") or {}

    def splitting(self: Any, tokens: Any) -> str:
        try:
            return str(known(self, tokens))
        except NotImplementedError:
            if splits.get("type") == "ByteLevel" and splits.get("use_regex", True):
                return "gpt-2"
            raise

    def gemma_vocabulary(self: Any) -> None:
        (sentencepiece if (self.dir_model / "tokenizer.model").is_file() else TextModel._set_vocab_gpt2)(self)

    def neox_parameters(self: Any) -> None:
        share = (self.hparams.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
        self.hparams.setdefault("rotary_pct", share)
        parameters(self)

    sentencepiece, parameters = GemmaModel.set_vocab, GPTNeoXModel.set_gguf_parameters
    TextModel.get_vocab_base_pre = splitting
    GemmaModel.set_vocab = gemma_vocabulary
    GPTNeoXModel.set_gguf_parameters = neox_parameters


def _q4_0(self: Any, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
    if n_dims < 2 or not new_name.endswith(".weight") or new_name in KEPT_FINER:
        return False
    return gguf.GGMLQuantizationType.Q4_0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
