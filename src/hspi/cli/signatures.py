"""`hspi collect`, `hspi signatures`: making and bringing signatures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hspi.cli.common import Ticker, params_option
from hspi.signatures import store

if TYPE_CHECKING:
    from hspi.platforms.record import Platform


@click.command()
@click.option("--platform", "platform_id", required=True, help="Platform id, see `hspi platforms list`.")
@click.option("--model", "models", multiple=True, help="Zoo id, path or hub id; repeatable. Default: params.yaml.")
@click.option("--probes", "sets", multiple=True, help="words, text or tokens; repeatable. Default: params.yaml.")
@click.option("--out", type=click.Path(path_type=Path), default=store.STORE, show_default=True)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="One setting for each, instead of the batch classes.",
)
@click.option("--jobs", type=click.IntRange(1), help="Processes that share the models. Default: params.yaml.")
@click.option("--progress", type=click.Choice(["bar", "json", "none"]), default="bar", show_default=True)
@click.option("--base-url", help="Ask a server that runs already, up to /v1, and label it as the platform.")
@click.option("--served-name", help="Name of the model there. Default: the model.")
@click.option(
    "--record",
    help='Platform that the catalogue lacks, as JSON: {"engine": "sglang", "hardware": "h100", "dtype": "bf16"}.',
)
@click.option("--skip-unavailable", is_flag=True, help="Where this machine cannot run the platform, note it and go on.")
@params_option
def collect(
    platform_id: str,
    models: tuple[str, ...],
    sets: tuple[str, ...],
    out: Path,
    batch_sizes: tuple[int, ...],
    jobs: int | None,
    progress: str,
    base_url: str | None,
    served_name: str | None,
    record: str | None,
    skip_unavailable: bool,
    params_file: str,
) -> None:
    """Make the signatures of one platform. Started again after a kill, it goes on where it stopped.

    \b
    Examples:
      hspi collect --platform torch-bf16
      hspi collect --platform ort-fp32 --model llama --probes text --out /tmp/s --batch-size 1 --batch-size 8
      hspi collect --platform vllm-bf16 --base-url http://127.0.0.1:8000/v1 --served-name m --model llama --out /tmp/s
    """
    from hspi import params
    from hspi.platforms import catalogue, machine
    from hspi.signatures import batch_classes
    from hspi.signatures import collect as collecting

    p = params.load(params_file)
    specs = [p.probes.spec(name) for name in sets or p.probes.sets]
    probes = sum(spec.size for spec in specs) * max(len(batch_sizes), 1)
    if base_url:
        settings = [batch_classes.setting(b) for b in batch_sizes]
        chosen = list(models or p.models)
        platform = _labelled(platform_id, record)
        if len(chosen) != 1:
            raise click.UsageError("--base-url serves one model: name it with --model")
        with Ticker(progress, probes, platform_id) as tick:
            name = served_name or chosen[0]
            collecting.collect_running(
                platform, base_url, name, chosen[0], specs, settings, out, tick.tick, tick.expect
            )
        return
    if served_name or record:
        raise click.UsageError("--served-name and --record need --base-url")
    platform = catalogue.get(platform_id)
    if skip_unavailable and not machine.availability(platform).runnable:
        click.echo(f"{platform_id} skipped: {collecting.note_skipped(platform_id, out)}")
        return
    with Ticker(progress, probes * len(models or p.models), platform_id) as tick:
        collecting.collect(
            platform_id, models, sets, batch_sizes, out=out, params=params_file, jobs=jobs,
            tick=tick.tick, expect=tick.expect,
        )  # fmt: skip


def _labelled(platform_id: str, record: str | None) -> Platform:
    """The catalogue's platform of that id, or a new one from JSON."""
    from hspi.platforms import catalogue
    from hspi.platforms.record import Platform

    if record is None:
        return catalogue.get(platform_id)
    if platform_id in catalogue.CATALOGUE:
        raise click.UsageError(f"--record is for platforms that the catalogue lacks, but it has {platform_id}")
    try:
        return Platform.from_dict({**json.loads(record), "id": platform_id})
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--record must be a JSON object with `engine`, but: {error}") from error


@click.group()
def signatures() -> None:
    """Signatures that were collected elsewhere."""


@signatures.command("add")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--no-dvc", is_flag=True, help="Copy alone; do not run `dvc add`.")
def signatures_add(folder: Path, no_dvc: bool) -> None:
    """Check every signature below FOLDER, copy it to data/signatures and track it with DVC.

    \b
    Example:  hspi signatures add ~/h200-signatures
    """
    for platform, paths in store.add(folder, track=not no_dvc).items():
        click.echo(f"{platform}: {len(paths)} signatures")


COMMANDS = (collect, signatures)
