"""params.yaml: what ships is valid, and what is wrong is named in one line."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hspi import params
from hspi.errors import ConfigError

ROOT = Path(__file__).parent.parent
GOOD: dict[str, Any] = {
    "models": ["llama"],
    "probes": {"seed": 1, "length": 8, "sets": {"text": {"size": 4}, "words": {"size": 2, "positions": 3}}},
    "use": ["amd-zen3/*", "torch-fp32"],
}


def load(tmp_path: Path, data: Any) -> params.Params:
    path = tmp_path / "p.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return params.load(path)


def test_the_file_that_ships_is_valid() -> None:
    p = params.load(ROOT / "params.yaml")
    for name in p.probes.sets:
        assert p.probes.spec(name).length == p.probes.length
    assert p.use == ["*"]


def test_the_demo_collects_a_handful_of_the_catalogue_and_uses_them(tmp_path: Path) -> None:
    from hspi.platforms.catalogue import CATALOGUE
    from hspi.signatures.store import in_use

    demo = params.load(ROOT / "params.yaml").demo
    assert 4 <= len(demo.collect) <= 8 and set(demo.collect) <= set(CATALOGUE)
    for name in demo.collect:
        (tmp_path / "some-machine" / name).mkdir(parents=True)
    assert in_use(tmp_path, demo.use) == {f"some-machine/{name}" for name in demo.collect}


def test_the_demo_uses_a_part_of_what_ships() -> None:
    """Each of its globs means something there: else a dataset was renamed and the demo trains on less than it says."""
    from hspi.signatures import datasets
    from hspi.signatures.store import STORE

    shipped = [f"{d.hardware}/{name}" for d in datasets.listing(ROOT / STORE) if d.versioned for name in d.software]
    demo = params.load(ROOT / "params.yaml").demo
    for glob in demo.use:
        assert [id for id in shipped if fnmatchcase(id, glob if "/" in glob else f"*/{glob}")], glob


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    p = load(tmp_path, GOOD)
    assert p.demo == params.Demo([], ["*"]) and load(tmp_path, {k: GOOD[k] for k in ("models", "probes")}).use == ["*"]
    assert p.collect.jobs == 2 and p.tuning.trials == 12 and p.probes.sets["text"].top_k == 64
    spec = p.probes.spec("words")
    assert (spec.size, spec.length, spec.seed, spec.positions, spec.kind) == (2, 8, 1, 3, "words")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["models"], "llama", "models must be a list, but got 'llama'"),
        (["models"], [1], "models[0] must be str"),
        (["probes"], None, "probes must be a mapping"),
        (["probes", "seed"], "one", "probes.seed must be int, but got 'one'"),
        (["probes", "seed"], True, "probes.seed must be int, but got True"),
        (["probes", "length"], 1.5, "probes.length must be int"),
        (["probes", "sets", "text", "size"], 0, "size >= 1"),
        (["probes", "sets", "text", "top_k"], 0, "top_k >= 1"),
        (["probes", "sets", "words", "positions"], 9, "positions <= length"),
        (["probes", "sets", "riddles"], {"size": 4}, "riddles"),
        (["models"], ["llama", "llama"], "llama"),
        (["use"], ["torch-fp32", "torch-fp32"], "torch-fp32"),
        (["use"], [], "use must hold globs such as 'amd-zen3/*', but got []"),
        (["demo"], {"use": [""]}, "demo.use must hold globs"),
        (["demo"], {"collect": ["a", "a"]}, "demo.collect must be named once each"),
        (["platforms"], ["torch-fp32"], "must hold only"),
        (["surprise"], 1, "surprise"),
        (["collect"], {"jobs": 1, "job": 1}, "must hold only jobs, but got job"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, path: list[Any], value: Any, says: str) -> None:
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, data)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["models", "probes"])
def test_what_is_needed_is_asked_for(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"must hold {key}, but it does not"):
        load(tmp_path, {k: v for k, v in GOOD.items() if k != key})


@pytest.mark.parametrize("text", ["", "[]", "a: [", "just words", "a: \x00"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "p.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        params.load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError):
        params.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"models: [\xff]")
    with pytest.raises(ConfigError):
        params.load(tmp_path / "latin.yaml")


def test_names_that_are_not_there(tmp_path: Path) -> None:
    p = load(tmp_path, GOOD)
    with pytest.raises(ConfigError, match="text, words, but got 'tokens'"):
        p.probes.spec("tokens")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "seed", "sets", "name"]), x),
        max_leaves=8,
    )
)
def test_nothing_but_config_errors_come_out(data: Any) -> None:
    try:
        found = params._build(params.Params, data, "p.yaml")
    except ConfigError:
        return
    assert isinstance(found, params.Params)
