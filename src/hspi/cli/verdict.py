"""`hspi verdict`, `hspi demo`: judging what a platform answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hspi.cli.common import claim_options, detector_option, json_option

if TYPE_CHECKING:
    from hspi.verdict import Verdict


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@claim_options
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.01, show_default=True)
@click.option("--probes", type=click.IntRange(1), default=32, show_default=True, help="Rows of the file to use.")
@click.option("--top-k", type=click.IntRange(2), default=20, show_default=True)
@detector_option
@json_option
@click.pass_context
def verdict(
    ctx: click.Context,
    file: Path,
    claim: str | None,
    claim_hardware: str | None,
    alpha: float,
    probes: int,
    top_k: int,
    detector: Path | None,
    as_json: bool,
) -> None:
    """Judge the signature in FILE. Exit code 0: claim consistent, 1: contradicted, 3: inconclusive or unknown.

    A claim of software alone is held against it on every hardware of the library, and never contradicted by hardware.

    \b
    Examples:
      hspi verdict data/signatures/amd-zen3/torch-bf16/llama/text.b1.parquet --claim torch-fp32
      hspi verdict data/signatures/amd-zen3/torch-bf16/llama/text.b1.parquet --claim-hardware 'amd-*'
    """
    from hspi import judging

    found = judging.judge(
        file, probes=probes, top_k=top_k, alpha=alpha, claim=claim, claim_hardware=claim_hardware, detector=detector
    )
    print_verdict(found, as_json)
    ctx.exit(found.exit_code)


def print_verdict(found: Verdict, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    for line in found.lines():
        click.echo(line)


@click.command()
@click.option("--hide", help="Platform to hide. Default: one drawn at random.")
@click.option("--seed", type=int, help="Of the draw. Default: another one each time.")
def demo(hide: str | None, seed: int | None) -> None:
    """Hide one platform's label, let it answer anew in a setting never collected, and say which it is.

    \b
    Example:  hspi demo --hide torch-bf16
    """
    from hspi import judging

    hidden, found, lie = judging.demo(hide, seed, lambda line: click.echo(line, err=True))
    print_verdict(found, as_json=False)
    click.echo(f"false claim   {lie.claim}: p = {lie.claim_p_value:.4g}, {lie.outcome}")
    right = "right" if hidden in found.members else "wrong"
    click.echo(f"\nThe hidden platform was {hidden}: the answer is {right}.")
    click.echo("Files: " + ", ".join(str(p) for p in judging.report_files()))


COMMANDS = (verdict, demo)
