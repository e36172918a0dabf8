"""The models that ship are real, and each way of naming a model ends in a ModelRef or one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import script
from hspi import zoo
from hspi.errors import ModelError, UnknownName
from hspi.files import root

training = script("train_zoo")

# Written for this test, so no model was trained on it.
TEXT = """In the morning the king rose early and went up from the city with his servants, and they came to the house of
the old priest. And he said unto them, Why do you come to this place, when the road is long and the day is hot? The
people of the land had sent them to ask for bread and water, because there was no rain in the field. A word is a sign
that stands for a thing, and the meaning of the word is in the use that men make of it. The program reads a file from
the system and writes the name of each user to the screen; if there is no file, it prints an error and stops."""


@pytest.fixture(params=sorted(zoo.ZOO))
def shipped(request: pytest.FixtureRequest) -> zoo.ModelRef:
    try:
        return zoo.resolve(request.param)
    except ModelError as e:
        pytest.skip(str(e))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The smallest folder that resolves; the bytes of the weights are never parsed on the way."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7, "architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    return tmp_path


def test_every_model_has_a_recipe_and_a_description():
    assert set(zoo.ZOO) == set(training.RECIPES)
    for name, model in zoo.ZOO.items():
        assert training.RECIPES[name].config_class.removesuffix("Config") == model.family.removesuffix("ForCausalLM")
        assert model.special


def test_shipped_weights_are_bf16_and_of_their_family(shipped):
    from safetensors import safe_open

    with safe_open(shipped.path / "model.safetensors", "np") as f:
        assert {f.get_slice(k).get_dtype() for k in f.keys()} == {"BF16"}  # noqa: SIM118
    assert shipped.family == zoo.ZOO[shipped.id].family


def test_shipped_models_stay_small():
    files = [f for row in zoo.list_models() for f in Path(row["path"]).glob("*")]
    assert sum(f.stat().st_size for f in files) <= 40e6


def test_shipped_model_was_trained_well_below_a_unigram_model(shipped):
    facts = json.loads((shipped.path / "training.json").read_text())
    assert facts["held_out_nats_per_token"] < facts["unigram_nats_per_token"] - 1
    assert facts["seconds"] > 0
    assert all(facts["packages"].values())


def test_shipped_model_reads_the_order_of_words_it_never_saw(shipped):
    """A unigram model's loss is the same for every order of the tokens, so the gap is what lies beyond it."""
    model, tokenizer = zoo.load_model(shipped.path, "fp32", "eager"), zoo.load_tokenizer(shipped)
    tokens = training.encode(tokenizer, [" ".join(TEXT.split())])
    rng = np.random.default_rng(0)
    shuffled = [np.concatenate([tokens[:1], rng.permutation(tokens[1:])]) for _ in range(3)]
    assert training.model_loss(model, tokens) < min(training.model_loss(model, s) for s in shuffled) - 1


def test_shipped_tokenizer_gives_every_text_back(shipped):
    tokenizer = zoo.load_tokenizer(shipped)
    text = "Ünïcode, 数, 🙂 and\n\ttabs"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == shipped.vocab_size
    assert max(ids) < shipped.vocab_size


def test_tokenizers_differ():
    try:
        ids = [zoo.load_tokenizer(zoo.resolve(name))(TEXT).input_ids for name in zoo.ZOO]
    except ModelError as e:
        pytest.skip(str(e))
    assert len({tuple(i) for i in ids}) == len(zoo.ZOO)


def test_hash_follows_the_bytes_and_not_the_place(folder, tmp_path_factory):
    first = zoo.resolve(str(folder)).weights_hash
    assert zoo.resolve(str(folder)).weights_hash == first
    other = tmp_path_factory.mktemp("copy")
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert zoo.resolve(str(other)).weights_hash == first
    (other / "tokenizer.json").write_text("{}")
    assert zoo.resolve(str(other)).weights_hash == first
    (other / "model.safetensors").write_bytes(bytes(99) + b"\1")
    assert zoo.resolve(str(other)).weights_hash != first


def test_hash_is_the_one_that_signatures_and_references_are_kept_by(folder):
    (folder / "config.json").write_text('{"vocab_size": 7, "architectures": ["LlamaForCausalLM"]}')
    expected = "40d89b238f8d0f760acf45ee1260b9fcf1f5cf7c86fb2e5dc5613f004e00cf83"
    assert zoo.weights_hash(folder) == zoo.resolve(str(folder)).weights_hash == expected


def test_hash_covers_config(folder):
    first = zoo.resolve(str(folder))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8, "architectures": ["LlamaForCausalLM"]}))
    second = zoo.resolve(str(folder))
    assert (first.vocab_size, second.vocab_size) == (7, 8)
    assert first.weights_hash != second.weights_hash


def test_unpulled_zoo_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HSPI_ROOT", str(tmp_path))
    with pytest.raises(ModelError, match=r"run  dvc pull data/zoo\.dvc$"):
        zoo.resolve("llama")
    assert [row["weights_hash"] for row in zoo.list_models()] == [None] * len(zoo.ZOO)


def test_root_is_found_from_a_folder_below(tmp_path, monkeypatch):
    monkeypatch.delenv("HSPI_ROOT", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zoo.dvc").touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert root() == tmp_path


@pytest.mark.parametrize("name", ["llamaa", "", "a/b/c", "org/", "org/name with space"])
def test_a_name_that_is_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match=r"^model must be one of .*llama.* but got "):
        zoo.resolve(name)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder-here"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match="must exist, but"):
        zoo.resolve(name)


def test_weights_in_pickle_are_not_a_model(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"must hold config\.json and \*\.safetensors"):
        zoo.resolve(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"vocab_size": 7}', '{"vocab_size": "x", "architectures": ["A"]}'])
def test_a_broken_config_is_one_line(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"^config\.json must name [^\n]+$"):
        zoo.resolve(str(folder))


def test_broken_weights_and_tokenizer_are_one_line(folder):
    ref = zoo.resolve(str(folder))
    for load in (lambda ref: zoo.load_model(ref.path, "fp32", "eager"), zoo.load_tokenizer):
        with pytest.raises(ModelError, match=r"^[^\n]+ must hold a [^\n]+$"):
            load(ref)


def test_hub_without_network_is_one_line(tmp_path):
    """In a process of its own, since huggingface_hub reads the switch on import."""
    code = "from hspi import zoo\ntry: zoo.resolve('some-org/some-model')\nexcept zoo.ModelError as e: print(e)"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hub model 'some-org/some-model' must be reachable or in the local cache, but: ")
    assert done.stdout.count("\n") == 1


def test_import_is_light():
    code = "import sys, hspi.zoo; print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
