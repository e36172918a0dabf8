"""`hspi platforms`, `hspi models`: what there is."""

from __future__ import annotations

from typing import Any

import click

from hspi.cli.common import json_option, show
from hspi.signatures.store import STORE


@click.group()
def platforms() -> None:
    """The catalogue of platforms."""


@platforms.command("list")
@json_option
def platforms_list(as_json: bool) -> None:
    """List platforms with provenance, whether this machine can run them, and if not, why.

    Virtual GPUs that differ by kernel plan alone stand on one line; --json has them all.

    \b
    Example:  hspi platforms list --json
    """
    from hspi.platforms.catalogue import CATALOGUE
    from hspi.platforms.machine import availability

    rows = []
    for platform in CATALOGUE.values():
        can = availability(platform)
        data = any(STORE.glob(f"{platform.id}/*/*.parquet"))
        state = {"runnable": can.runnable, "why_not": can.why_not, "data": data}
        rows.append({**platform.to_dict(), **state})
    columns = ["id", "provenance", "engine", "device", "dtype", "quantization", "attention"]
    show(rows if as_json else _by_family(rows), [*columns, "runnable", "data", "why_not"], as_json)


def _by_family(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the kernel plans of a virtual GPU: `vgpu-a100-bf16-*`."""
    from hspi.platforms.record import Platform
    from hspi.platforms.virtual.catalogue import family

    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = family(Platform.from_dict(row))
        first = found.setdefault(name, row if name == row["id"] else {**row, "id": f"{name}-*"})
        first["data"] = first["data"] or row["data"]
    return list(found.values())


@click.group()
def models() -> None:
    """The models that ship."""


@models.command("list")
@json_option
def models_list(as_json: bool) -> None:
    """List the models of the zoo with the hash of their weights.

    \b
    Example:  hspi models list --json
    """
    from hspi import zoo

    show(zoo.list_models(), ["id", "path", "weights_hash"], as_json)


COMMANDS = (platforms, models)
