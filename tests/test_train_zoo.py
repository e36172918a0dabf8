"""How the models of the zoo are made: the corpus and its split, the losses, and training that repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import script
from hspi.errors import ModelError, UnknownName

training = script("train_zoo")


def test_split_holds_documents_out_and_is_repeatable():
    text = "\n\n".join(f"paragraph {i} " * 200 for i in range(100))
    corpus = training.Corpus({"kjv": text}, {})
    train, held_out = training.split(corpus, {"kjv": 1.0})
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(training.documents(text))
    assert held_out
    assert (train, held_out) == training.split(corpus, {"kjv": 1.0})
    assert len(training.split(corpus, {"kjv": 0.5})[0]) < len(train)


def test_unigram_loss_is_the_entropy_of_a_uniform_text():
    tokens = np.tile(np.arange(8), 5000)
    assert training.unigram_loss(tokens, tokens, vocab_size=8) == pytest.approx(np.log(8), abs=1e-3)


def test_windows_predict_each_token_once():
    tokens = np.arange(1000)
    assert np.concatenate([w[1:] for w in training.windows(tokens, 256)]).tolist() == list(range(1, 1000))


def test_learning_rate_warms_up_and_decays():
    recipe = training.RECIPES["llama"]
    rates = [training.learning_rate(s, recipe) for s in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.01)
    assert rates[0] < 0.1 * recipe.learning_rate
    assert rates[-1] < 0.1 * recipe.learning_rate


def test_same_seed_gives_the_same_model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    recipe = training.Recipe("LlamaConfig", seed=1, mix={}, steps=3, batch=2)
    tokens = np.random.default_rng(0).integers(0, 50, 2000)
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        )
        training.fit(model, tokens, recipe)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_corpus_without_a_registry_is_one_line_and_leaves_nothing_whole(tmp_path, monkeypatch):
    """A real program that fails as apt-get does offline stands first on PATH."""
    fake = tmp_path / "bin" / "apt-get"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'E: Unable to locate package bible-kjv-text' >&2\nexit 100\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    with pytest.raises(ModelError, match=r"^Debian's packages [^\n]* must be reachable [^\n]*Unable to locate[^\n]*$"):
        training.build_corpus(tmp_path / "cache")
    assert not (tmp_path / "cache" / "unpacked").exists()


def test_unknown_recipe(tmp_path):
    with pytest.raises(UnknownName):
        training.train("gpt5", tmp_path / "x", tmp_path)
