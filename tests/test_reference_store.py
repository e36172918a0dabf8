"""References on disk: made once, whole, and found by all that they depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hspi import zoo
from hspi.reference.store import cached_reference, reference_path
from test_platforms_adapters import VOCABULARY, make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zoo.ModelRef]:
    names = ("llama", "gemma", "neox")
    return {n: zoo.resolve(str(make_model(tmp_path_factory.mktemp(n), n))) for n in names}


@pytest.fixture(scope="module")
def contexts() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, VOCABULARY, n) for n in (9, 12, 7, 12)]


def test_a_hit_returns_identical_bits_without_the_model(models, contexts, tmp_path):
    ref = models["neox"]
    first = cached_reference(ref, "probes", contexts, 3, tmp_path)
    gone = replace(ref, path=tmp_path / "no such model")
    again = cached_reference(gone, "probes", contexts, 3, tmp_path)
    assert first.tobytes() == again.tobytes()
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_each_dependency_has_its_own_file(models, tmp_path):
    ref = models["llama"]
    keys = [(ref, "a", 1), (ref, "b", 1), (ref, "a", 2), (replace(ref, weights_hash="0"), "a", 1)]
    assert len({reference_path(*key, tmp_path) for key in keys}) == 4


def test_a_truncated_file_is_made_again(models, contexts, tmp_path):
    ref = models["gemma"]
    first = cached_reference(ref, "probes", contexts, 2, tmp_path)
    path = reference_path(ref, "probes", 2, tmp_path)
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:size])
        again = cached_reference(ref, "probes", contexts, 2, tmp_path)
        assert again.tobytes() == first.tobytes()
        assert path.read_bytes() == whole
