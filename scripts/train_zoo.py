"""Makes the models in data/zoo: corpus, tokenizer, training, each seeded.

    python scripts/train_zoo.py --model llama --out data/zoo/llama

The text is English that Debian's packages carry and whose licence allows this use. It is fetched into a cache folder
and never committed; `training.json` beside the weights names each package with its version. Training runs on one
thread, float32 weights under bf16 autocast, so a second run on the same machine and versions gives the same weights.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hspi.errors import ModelError, UnknownName
from hspi.files import write_json

Tokens = npt.NDArray[np.int64]

CONTEXT = 256  # tokens
VOCAB = 4096
HELD_OUT_EVERY = 33  # each 33rd document is never trained on
DOCUMENT_CHARS = 2000
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>")  # their ids are 0, 1, 2, 3


# --- corpus ---------------------------------------------------------------------------------------------------------


def _read_kjv(root: Path) -> str:
    """The text is in a compressed format of its own, which the `bible` program of the same source package reads."""
    command = [str(root / "usr/bin/bible"), "-p", str(root / "usr/lib"), "-l0", "gen1:1-rev22:21"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode or not done.stdout:
        raise ModelError(f"`bible` of package bible-kjv must run, but it said: {done.stderr.strip()[:200]!r}")
    return re.sub(r"^ *\d+ +", "", done.stdout, flags=re.MULTILINE)  # verse numbers


def _read_dict(name: str) -> Callable[[Path], str]:
    def read(root: Path) -> str:
        text = gzip.decompress((root / f"usr/share/dictd/{name}.dict.dz").read_bytes()).decode("utf-8", "replace")
        return re.sub(r"\[[^\]]*(?:Webster|WordNet|PJC)[^\]]*\]", "", text)  # marks of where an entry came from

    return read


def _read_debian_reference(root: Path) -> str:
    text = gzip.decompress((root / "usr/share/debian-reference/debian-reference.en.txt.gz").read_bytes()).decode()
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(("|", "+")))  # tables


@dataclass(frozen=True, slots=True)
class Source:
    packages: tuple[str, ...]
    licence: str
    read: Callable[[Path], str]


SOURCES = {
    "kjv": Source(("bible-kjv-text", "bible-kjv"), "public domain", _read_kjv),
    "devil": Source(("dict-devil",), "public domain", _read_dict("devil")),
    "jargon": Source(("dict-jargon",), "public domain", _read_dict("jargon")),
    "gcide": Source(("dict-gcide",), "GPL-3+", _read_dict("gcide")),
    "debian-reference": Source(("debian-reference-en",), "GPL-2+", _read_debian_reference),
}


@dataclass(frozen=True, slots=True)
class Corpus:
    texts: dict[str, str]
    packages: dict[str, str]  # name → version


def build_corpus(cache_dir: Path) -> Corpus:
    """Fetch and unpack every source's Debian packages (once), and return their text. Raises ModelError offline."""
    root = cache_dir / "unpacked"
    if not root.is_dir():
        _fetch(cache_dir)
    packages = {name: version for name, version, _ in (p.stem.split("_") for p in sorted(cache_dir.glob("*.deb")))}
    return Corpus({name: source.read(root) for name, source in SOURCES.items()}, packages)


def _fetch(cache_dir: Path) -> None:
    partial = cache_dir / "unpacked.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = [p for source in SOURCES.values() for p in source.packages]
    try:
        subprocess.run(["apt-get", "download", "-q", *names], cwd=cache_dir, check=True, capture_output=True, text=True)
        for deb in sorted(cache_dir.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(deb), str(partial)], check=True, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise ModelError(f"apt-get and dpkg must be here to fetch the corpus, but {e.filename} is not") from e
    except subprocess.CalledProcessError as e:
        last = (e.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"Debian's packages {', '.join(names)} must be reachable for the corpus, but: {last}") from e
    partial.rename(cache_dir / "unpacked")


def documents(text: str) -> list[str]:
    """Paragraphs with their white space normalised, joined to documents of about DOCUMENT_CHARS characters."""
    joined: list[str] = []
    current: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        current.append(" ".join(paragraph.split()))
        if sum(map(len, current)) >= DOCUMENT_CHARS:
            joined.append("\n".join(current).strip())
            current = []
    return [*joined, "\n".join(current).strip()] if current else joined


def split(corpus: Corpus, mix: dict[str, float]) -> tuple[list[str], list[str]]:
    """Documents to train on and documents held out: of each source, the first share `mix[source]` of a fixed order."""
    train: list[str] = []
    held_out: list[str] = []
    for name, share in mix.items():
        docs = documents(corpus.texts[name])
        order = np.random.default_rng(0).permutation(len(docs))[: round(share * len(docs))]
        held_out += [docs[i] for i in order if i % HELD_OUT_EVERY == 0]
        train += [docs[i] for i in order if i % HELD_OUT_EVERY]
    return train, held_out


# --- recipes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one model is and is trained on. `mix` is the share of each source, 0 to 1."""

    config_class: str
    seed: int
    mix: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 800
    batch: int = 4  # windows of CONTEXT tokens
    learning_rate: float = 1.5e-3


RECIPES = {
    "llama": Recipe(
        "LlamaConfig",
        seed=11,
        mix={"kjv": 1.0, "devil": 1.0},
        config={"intermediate_size": 640, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False},
    ),
    "qwen3": Recipe(
        "Qwen3Config",
        seed=12,
        mix={"gcide": 0.12, "jargon": 1.0},
        config={"intermediate_size": 704, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    ),
    "gemma": Recipe(
        "GemmaConfig",
        seed=13,
        mix={"jargon": 1.0, "debian-reference": 1.0, "kjv": 0.4},
        config={"intermediate_size": 640, "num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": True},
    ),
    "neox": Recipe(
        "GPTNeoXConfig",
        seed=14,
        mix={"kjv": 0.5, "gcide": 0.04, "devil": 1.0, "jargon": 0.5},
        config={"intermediate_size": 768, "attention_bias": True, "tie_word_embeddings": False},
    ),
}


def make_config(recipe: Recipe) -> Any:
    import transformers

    common = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": SPECIALS.index("<s>"),
        "eos_token_id": SPECIALS.index("</s>"),
        "pad_token_id": SPECIALS.index("<pad>"),
    }
    return getattr(transformers, recipe.config_class)(**common, **recipe.config)


def train_tokenizer(docs: list[str], vocab_size: int = VOCAB) -> Any:
    """A byte-level BPE tokenizer as a transformers `PreTrainedTokenizerFast`. No text is unknown to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docs, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
    )


def encode(tokenizer: Any, docs: list[str]) -> Tokens:
    """All documents as one row of ids, int64 (n,), each document after a `<s>`."""
    parts: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(docs):
        parts += [tokenizer.bos_token_id, *encoding.ids]
    return np.array(parts, dtype=np.int64)


# --- training -------------------------------------------------------------------------------------------------------


def unigram_loss(train: Tokens, held_out: Tokens, vocab_size: int = VOCAB) -> float:
    """Nats a token of the unigram model with add-one counts from `train`, on `held_out[1:]`."""
    counts = np.bincount(train, minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[held_out[1:]].mean())


def windows(tokens: Tokens, size: int = CONTEXT) -> Iterator[Tokens]:
    for start in range(0, len(tokens) - 1, size):
        yield tokens[start : start + size + 1]


def model_loss(model: Any, tokens: Tokens) -> float:
    """Nats a token over `tokens`, each window of CONTEXT tokens read without what came before it."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for window in windows(tokens):
            ids = torch.from_numpy(window)
            logits = model(ids[None, :-1]).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
    return total / (len(tokens) - 1)


def learning_rate(step: int, recipe: Recipe, warmup: int = 50) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(model: Any, tokens: Tokens, recipe: Recipe) -> None:
    """AdamW on random windows of `tokens`, in place. Every draw comes from the recipe's seed."""
    import torch
    from tqdm import tqdm

    rng = np.random.default_rng(recipe.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    model.train()
    with tqdm(range(recipe.steps), desc=recipe.config_class, mininterval=5) as bar:
        for step in bar:
            starts = rng.integers(0, len(tokens) - CONTEXT - 1, recipe.batch)
            ids = torch.from_numpy(np.stack([tokens[s : s + CONTEXT + 1] for s in starts]))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def train(name: str, out: Path, cache_dir: Path, steps: int | None = None) -> dict[str, Any]:
    """Make the zoo model `name` into the folder `out`, which appears whole or not at all. Returns training.json's dict.

    Raises UnknownName for a name without a recipe, ModelError where the corpus cannot be fetched.
    """
    if name not in RECIPES:
        raise UnknownName("model", name, RECIPES)
    import torch
    import transformers

    recipe = replace(RECIPES[name], steps=steps or RECIPES[name].steps)
    began = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    corpus = build_corpus(cache_dir)
    train_docs, held_docs = split(corpus, recipe.mix)
    tokenizer = train_tokenizer(train_docs)
    train_tokens, held_tokens = encode(tokenizer, train_docs), encode(tokenizer, held_docs)[:20_000]
    model = transformers.AutoModelForCausalLM.from_config(make_config(recipe), dtype=torch.float32)
    fit(model, train_tokens, recipe)
    model.to(torch.bfloat16)  # what ships is what is measured
    used = sorted(p for source in recipe.mix for p in SOURCES[source].packages)
    facts = {
        "model": name,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "packages": {p: corpus.packages[p] for p in used},
        "licences": {s: SOURCES[s].licence for s in recipe.mix},
        "train_tokens": len(train_tokens),
        "tokens_seen": recipe.steps * recipe.batch * CONTEXT,
        "held_out_tokens": len(held_tokens),
        "held_out_nats_per_token": round(model_loss(model.float(), held_tokens), 4),
        "unigram_nats_per_token": round(unigram_loss(train_tokens, held_tokens), 4),
        "seconds": round(time.perf_counter() - began, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    save(model, tokenizer, facts, out)
    return facts


def save(model: Any, tokenizer: Any, facts: dict[str, Any], out: Path) -> None:
    import torch

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_json(partial / "training.json", facts, indent=2, sort_keys=False)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Train one model of the zoo: 6 to 13 minutes on one CPU thread.")
    parser.add_argument("--model", required=True, choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder to make, e.g. data/zoo/llama")
    parser.add_argument("--cache", type=Path, default=Path(".cache/corpus"), help="where Debian's packages are kept")
    parser.add_argument("--steps", type=int, help="fewer optimizer steps than the recipe's, for a trial")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        facts = train(args.model, args.out, args.cache, args.steps)
    except ModelError as e:
        raise SystemExit(f"error: {e}") from e
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
