"""The table of pairs: the lowest first, and as a matrix by hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from hspi.errors import DataError
from hspi.evaluation.pairs import pair_matrix, pair_rows

HEAD = "level,split,model,platform_a,platform_b,accuracy,n\n"
NO_NUMBER = f"{HEAD}replay,probes,one,torch-bf16,ort-fp32,good,100\n"
PAIRS = f"""{HEAD}replay,probes,one,b/x,a/z,1.0,32
replay,probes,two,b/x,a/z,0.75,32
replay,probes,one,a/z,a/y,0.9,32
replay,probes,one,a-b/x,a/z,1.0,32
replay,probes,one,a/y,c/x,nan,32
residual,probes,one,b/x,a/z,0.1,32
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRS)
    return path


def test_each_pair_counts_on_the_model_where_it_is_lowest(table: Path) -> None:
    assert [(r["platform_a"], r["platform_b"], r["accuracy"], r["model"]) for r in pair_rows(table)] == [
        ("b/x", "a/z", 0.75, "two"),
        ("a/z", "a/y", 0.9, "one"),
        ("a-b/x", "a/z", 1.0, "one"),
    ]


def test_the_matrix_stands_by_hardware_and_is_empty_where_nothing_was_compared(table: Path) -> None:
    matrix = {row["platform"]: row for row in pair_matrix(table)}
    assert list(matrix) == ["a/y", "a/z", "a-b/x", "b/x"]
    assert all(list(row) == ["platform", *matrix] for row in matrix.values())
    assert matrix["a/z"]["b/x"] == matrix["b/x"]["a/z"] == "0.7500"
    assert matrix["a/y"]["b/x"] == matrix["a/y"]["a/y"] == ""


@pytest.mark.parametrize("text", ["", "level,split\nreplay,probes\n", NO_NUMBER])
def test_a_broken_pair_table_is_one_clear_line(tmp_path: Path, text: str) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(text)
    if not text:
        assert pair_rows(table) == []
        return
    with pytest.raises(DataError, match="must hold level, split"):
        pair_rows(table)
