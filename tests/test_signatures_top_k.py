"""The k most likely tokens against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hspi.errors import DataError
from hspi.signatures.top_k import top_k


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda rows: st.lists(
            # few values, so that nearly all tie
            st.lists(st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0]), min_size=7, max_size=7),
            min_size=rows,
            max_size=rows,
        )
    ),
    st.integers(1, 7),
)
def test_top_k_is_a_stable_sort_cut_short(rows: list[list[float]], k: int) -> None:
    values = np.asarray(rows, np.float32)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    ids, found = top_k(values, k)
    np.testing.assert_array_equal(ids, order)
    assert found.tobytes() == np.take_along_axis(values, order, axis=1).tobytes()
    assert ids.dtype == np.int32 and found.dtype == np.float32


def test_top_k_keeps_leading_axes_and_reads_any_layout() -> None:
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 2, 50)).astype(np.float32))
    ids, found = top_k(values, 4)
    assert ids.shape == found.shape == (3, 2, 4)
    np.testing.assert_array_equal(ids, np.argsort(-values, axis=-1, kind="stable")[..., :4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_top_k_takes_finite_values_alone(bad: float) -> None:
    values = np.zeros((2, 5), np.float32)
    values[1, 3] = bad
    with pytest.raises(DataError, match="finite"):
        top_k(values, 2)


def test_what_a_server_kept_to_itself_is_never_among_the_top_k() -> None:
    values = np.log(np.array([[0.1, 0.2, 0.4, 0.3]], np.float32))
    values[0, 3] = -np.inf
    assert top_k(values, 3)[0].tolist() == [[2, 1, 0]]
    with pytest.raises(DataError, match="4 finite log-probabilities must come"):
        top_k(values, 4)


@pytest.mark.parametrize("k", [0, 6])
def test_top_k_must_fit_in_the_vocabulary(k: int) -> None:
    with pytest.raises(DataError, match=f"top_k={k}, vocabulary=5"):
        top_k(np.zeros((1, 5), np.float32), k)
