"""Options and output that several verbs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

params_option = click.option(
    "--params", "params_file", default="params.yaml", show_default=True, type=click.Path(dir_okay=False)
)
_CLAIM = click.option("--claim", help="What the provider claims: torch-bf16 (on any hardware) or amd-zen4/torch-bf16.")
_HARDWARE = click.option("--claim-hardware", help="Hardware that the provider claims, a pattern: nvidia-h100-*.")


def claim_options(command: Any) -> Any:
    """`--claim` and `--claim-hardware`."""
    return _CLAIM(_HARDWARE(command))


detector_option = click.option(
    "--detector", type=click.Path(path_type=Path), help="Its folder. Default: champion, else the last."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def show(rows: list[dict[str, Any]], columns: list[str], as_json: bool) -> None:
    """A table for people, or every field as JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = [columns] + [[str(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


class Ticker:
    """Progress of probes: a bar for people, a line of JSON for a parent process, or nothing."""

    def __init__(self, kind: str, total: int, label: str) -> None:
        self.kind, self.total, self.label = kind, total, label

    def __enter__(self) -> Ticker:
        if self.kind == "bar":
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, desc=self.label, unit="probe", smoothing=0.05, mininterval=0.5)
        return self

    def tick(self, n: int) -> None:
        """So many probes more are done."""
        self._tell("probes", n)

    def expect(self, n: int) -> None:
        """So many probes more are to come than the total said."""
        if self.kind == "bar":
            self.bar.total = (self.bar.total or 0) + n
            self.bar.refresh()
        else:
            self._tell("expect", n)

    def _tell(self, what: str, n: int) -> None:
        if self.kind == "bar":
            self.bar.update(n)
        elif self.kind == "json" and n:
            print(json.dumps({what: n}), flush=True)

    def __exit__(self, *exc: object) -> None:
        if self.kind == "bar":
            self.bar.close()


class Steps:
    """Names of parts as they start, with the seconds since the first."""

    def __init__(self, label: str) -> None:
        import time

        self.label, self.clock = label, time.monotonic
        self.began = self.clock()

    def __call__(self, name: str) -> None:
        click.echo(f"{self.label} {self.clock() - self.began:6.1f} s  {name}", err=True)
