"""`hspi collect`, `hspi signatures`: making and bringing signatures."""

from __future__ import annotations

from pathlib import Path

import click

from hspi.cli.common import Ticker, params_option


@click.command()
@click.option("--platform", "platform_id", required=True, help="Platform id, see `hspi platforms list`.")
@click.option("--model", "models", multiple=True, help="Zoo id, path or hub id; repeatable. Default: params.yaml.")
@click.option("--probes", "sets", multiple=True, help="words, text or tokens; repeatable. Default: params.yaml.")
@click.option("--out", type=click.Path(path_type=Path), default="data/signatures", show_default=True)
@click.option("--batch-size", "batch_sizes", type=click.IntRange(1), multiple=True, help="Instead of params.yaml's.")
@click.option("--jobs", type=click.IntRange(1), help="Processes that share the models. Default: params.yaml.")
@click.option("--progress", type=click.Choice(["bar", "json", "none"]), default="bar", show_default=True)
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
    skip_unavailable: bool,
    params_file: str,
) -> None:
    """Make the signatures of one platform. Started again after a kill, it goes on where it stopped.

    \b
    Examples:
      hspi collect --platform torch-bf16
      hspi collect --platform ort-fp32 --model llama --probes text --out /tmp/s --batch-size 1 --batch-size 8
    """
    from hspi import collect as collecting
    from hspi import params
    from hspi.platforms import catalogue, machine
    from hspi.platforms.record import Nuisance

    p = params.load(params_file)
    specs = [p.probes.spec(name) for name in sets or p.probes.sets]
    nuisances = [Nuisance(f"b{b}", b) for b in batch_sizes] or p.nuisances
    chosen = list(models or p.models)
    platform = catalogue.get(platform_id)
    if skip_unavailable and not machine.availability(platform).runnable:
        click.echo(f"{platform_id} skipped: {collecting.note_skipped(platform_id, out)}")
        return
    with Ticker(progress, len(chosen) * len(nuisances) * sum(s.size for s in specs), platform_id) as tick:
        collecting.collect(platform_id, chosen, specs, nuisances, out, tick, jobs or p.collect.jobs)


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
    from hspi import signature_store

    for platform, paths in signature_store.add(folder, track=not no_dvc).items():
        click.echo(f"{platform}: {len(paths)} signatures")


COMMANDS = (collect, signatures)
