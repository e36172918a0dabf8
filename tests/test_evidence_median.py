from __future__ import annotations

import numpy as np
import pytest

from hspi.evidence.median import median


@pytest.mark.parametrize("n", [1, 2, 3, 20, 64])
def test_it_is_numpys_median_to_the_bit_ties_included(n: int) -> None:
    rng = np.random.default_rng(n)
    for values in (rng.normal(size=n), rng.integers(-2, 3, n).astype(float), np.zeros(n)):
        padded = np.concatenate([values, [1e300]])
        assert median(padded, n) == np.median(values)
        assert (padded[:n] == values).all()
