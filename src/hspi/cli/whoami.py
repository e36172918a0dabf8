"""`hspi whoami`: which known hardware this machine computes like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hspi.cli.common import Steps, json_option, params_option, show
from hspi.signatures import store

if TYPE_CHECKING:
    from hspi.identity import Identity, Likeness


@click.command()
@click.option("--platform", "platforms", multiple=True, help="To ask; repeatable. Default: a few that start fast.")
@click.option("--model", default="llama", show_default=True, help="Zoo id, path or hub id.")
@click.option("--store", type=click.Path(path_type=Path), default=store.STORE, show_default=True)
@params_option
@json_option
def whoami(platforms: tuple[str, ...], model: str, store: Path, params_file: str, as_json: bool) -> None:
    """Say which known hardware this machine computes like, by software, and where it is alone.

    A few platforms answer here, and their bits are held against the signatures that ship; then the answer is checked
    against what the device says of itself (CPUID).

    \b
    Example:  hspi whoami --platform torch-fp32 --platform torch-bf16
    """
    import hspi

    found = hspi.whoami(platforms, store=store, model=model, params=params_file, step=Steps("whoami"))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    for identity in found.identities:
        show([_row(r) for r in identity.rows], ["software", "computes like", "equal bits", "note"], as_json=False)
        _say(identity)
    for id, why in found.skipped.items():
        click.echo(f"skipped    {id}: {why}")


def _say(identity: Identity) -> None:
    click.echo(f"\nanswer     {identity.answer()}")
    click.echo(f"says       {identity.hardware.id}: {identity.hardware.provenance}")
    click.echo(f"check      {identity.check()}")


def _row(row: Likeness) -> dict[str, str]:
    """What the table has of one software: all hardware with equal bits, or the nearest where it is alone."""
    if not row.shares:
        return {"software": row.software, "computes like": "–", "note": "nobody has signatures of it"}
    best = next(iter(row.shares))
    notes = [] if row.alike else [f"nearest is {best}"]
    notes += [f"{row.versions[best]} there"] if best in row.versions else []
    notes += [f"as {', '.join(row.as_capped)}"] if row.as_capped else []
    like, share = ", ".join(row.alike) or "alone", f"{row.shares[best]:.4f}"
    return {"software": row.software, "computes like": like, "equal bits": share, "note": "; ".join(notes)}


COMMANDS = (whoami,)
