"""The table of pairs as metrics whose names MLflow takes, and as a matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from hspi.errors import DataError
from hspi.evaluation.pairs import pair_matrix, pair_metrics

NO_NUMBER = "level,split,platform_a,platform_b,accuracy,n\nreplay,probes,torch-bf16,ort-fp32,good,100\n"


def test_names_that_mlflow_refuses_are_mended(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("level,split,platform_a,platform_b,accuracy,n\nreplay,probes,a+b (2),c/d,0.5,1\n")
    assert set(pair_metrics(table)) >= {"pair.a_b _2_/c_d.accuracy"}
    assert pair_matrix(table)[0] == {"platform": "a+b (2)", "a+b (2)": "", "c/d": "0.5000"}


@pytest.mark.parametrize("text", ["", "level,split\nreplay,probes\n", NO_NUMBER])
def test_a_broken_pair_table_is_one_clear_line(tmp_path: Path, text: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    if not text:
        assert pair_metrics(table) == {}
        return
    with pytest.raises(DataError, match="must hold level, split"):
        pair_metrics(table)
