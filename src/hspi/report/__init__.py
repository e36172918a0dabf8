"""Pictures and the self-contained page of one evaluation, and the results that README.md shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hspi.files import write_bytes, write_text
from hspi.report.headlines import Metrics, markdown
from hspi.report.read import read_metrics

BEGIN, END = "<!-- results -->", "<!-- /results -->"


def build(
    tables: Path, metrics: Path, features: Path | None, out: Path, virtual_gpus: Path | None = None
) -> list[Path]:
    """Write OUT/figures/*.png and OUT/report.html from the evaluation's tables and metrics. Returns the files.

    tables: folder of CSVs, metrics: flat JSON, both as `hspi evaluate` writes them; features: what `hspi featurize`
    wrote, for the pictures of residuals and the records of platforms, or None to go without; virtual_gpus: what
    benchmarks/bench_virtual_gpus.py wrote, or None. A picture whose table is not there is left out. Raises DataError
    if a file is not what it must be; then nothing is written.
    """
    from hspi.report import figures, residuals
    from hspi.report.evaluation import render
    from hspi.report.read import read
    from hspi.report.virtual import section

    evaluation = read(Path(tables), Path(metrics), features)
    pictures = [*figures.draw(evaluation), *residuals.draw(evaluation)]
    html = render(evaluation, pictures, [] if virtual_gpus is None else [section(virtual_gpus)])
    out = Path(out)
    paths = [write_bytes(out / "figures" / f"{p.name}.png", p.png) for p in pictures]
    return [*paths, write_text(out / "report.html", html)]


def readme_block(metrics: Metrics, hosts: Sequence[str] = ()) -> str:
    """The results for README.md, its two marks included: Markdown, a row for each headline that the run measured, and
    below them what and where it was measured (`hosts`, as `hspi.report.hosts.hosts` names them)."""
    return f"{BEGIN}\n{markdown(metrics, hosts)}\n{END}"


def update_readme(readme: str | Path, metrics: str | Path, store: str | Path = "data/signatures") -> None:
    """Put the results of a metrics.json between the marks of a README, with the machines that the signatures of
    `store` come from. Raises DataError if the marks are not there, or no signature is."""
    from hspi.errors import DataError
    from hspi.report.hosts import hosts

    readme = Path(readme)
    text = readme.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{readme} must hold {BEGIN} and {END}, but it does not")
    write_text(readme, before + readme_block(read_metrics(Path(metrics)), hosts(store)) + after)
