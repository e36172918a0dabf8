"""`hspi collect`, `hspi signatures`: making signatures, and the datasets that they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hspi.cli.common import Ticker, json_option, params_option, show
from hspi.errors import UnknownName
from hspi.signatures import datasets, store

if TYPE_CHECKING:
    from hspi.platforms.record import Platform


@click.command()
@click.option("--platform", "platforms", required=True, multiple=True,
              help="Platform id, see `hspi platforms list`; repeatable.")  # fmt: skip
@click.option("--model", "models", multiple=True, help="Zoo id, path or hub id; repeatable. Default: params.yaml.")
@click.option("--probes", "sets", multiple=True, help="words, text or tokens; repeatable. Default: params.yaml.")
@click.option("--out", type=click.Path(path_type=Path), default=store.STORE, show_default=True)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="One setting for each, instead of the platform's batch classes, which take a while to find.",
)
@click.option("--jobs", type=click.IntRange(1),
              help="Processes that share the models; of several platforms, those at once. Default: params.yaml; cores.",
              )  # fmt: skip
@click.option("--progress", type=click.Choice(["bar", "json", "none"]), default="bar", show_default=True)
@click.option("--base-url", help="Ask a server that runs already, up to /v1, and label it as the platform.")
@click.option("--served-name", help="Name of the model there. Default: the model.")
@click.option(
    "--record",
    help='Platform that the catalogue lacks, as JSON: {"engine": "sglang", "hardware": "h100", "dtype": "bf16"}.',
)
@click.option("--skip-unavailable", is_flag=True, help="Where this machine cannot run a platform, say so and go on.")
@params_option
def collect(
    platforms: tuple[str, ...],
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
    """Make the signatures of a platform here, or of several side by side. Started again after a kill, it goes on.

    \b
    Examples:
      hspi collect --platform torch-bf16
      hspi collect --platform torch-fp32 --platform ort-fp32 --platform openvino-bf16 --skip-unavailable
      hspi collect --platform ort-fp32 --model llama --probes text --out /tmp/s --batch-size 1 --batch-size 8
      hspi collect --platform vllm-bf16 --base-url http://127.0.0.1:8000/v1 --served-name m --model llama --out /tmp/s
    """
    from hspi import params
    from hspi.signatures import batch_classes, side_by_side
    from hspi.signatures import collect as collecting

    p = params.load(params_file)
    specs = [p.probes.spec(name) for name in sets or p.probes.sets]
    probes = sum(spec.size for spec in specs) * max(len(batch_sizes), 1)
    if base_url:
        settings = [batch_classes.setting(b) for b in batch_sizes]
        chosen = list(models or p.models)
        if len(chosen) != 1 or len(platforms) != 1:
            raise click.UsageError("--base-url serves one model: name it with --model, and one platform")
        platform = _labelled(platforms[0], record)
        with Ticker(progress, probes, platform.id) as tick:
            name = served_name or chosen[0]
            collecting.collect_running(
                platform, base_url, name, chosen[0], specs, settings, out, tick.tick, tick.expect
            )
        return
    if served_name or record:
        raise click.UsageError("--served-name and --record need --base-url")
    here = side_by_side.runnable(platforms, skip_unavailable=skip_unavailable, say=click.echo)
    total = probes * len(models or p.models) * len(here)
    if len(here) == 1:
        with Ticker(progress, total, here[0]) as tick:
            collecting.collect(
                here[0], models, sets, batch_sizes, out=out, params=params_file, jobs=jobs,
                tick=tick.tick, expect=tick.expect,
            )  # fmt: skip
    elif here:
        options = _words_of(model=models, probes=sets, batch_size=batch_sizes, params=[params_file])
        with Ticker(progress, total, f"{len(here)} platforms") as tick:
            side_by_side.collect_side_by_side(
                here, options, out=out, tick=tick.tick, expect=tick.expect, processes=jobs
            )


def _words_of(**options: Iterable[object]) -> list[str]:
    """The options as they would be typed, each as often as it has values."""
    pairs = [(f"--{name.replace('_', '-')}", str(v)) for name, values in options.items() for v in values]
    return [word for pair in pairs for word in pair]


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
    """Datasets of signatures, one for each hardware: what ships, and what joins it.

    \b
    Examples:
      hspi signatures list                              what ships, by hardware
      hspi signatures show amd-zen3                     its platforms, batch classes, versions, dates
      hspi signatures add                               version what was collected here
      hspi signatures add ~/signatures                  check, place and version what was collected elsewhere
    """


@signatures.command("list")
@json_option
def signatures_list(as_json: bool) -> None:
    """Datasets by hardware: what DVC versions, pulled or not, and what lies here unversioned.

    \b
    Examples:
      hspi signatures list
      hspi signatures list --json
    """
    rows = [_row(dataset) for dataset in datasets.listing(store.STORE)]
    if not as_json:
        rows = [row | {name: _words(row[name]) for name in row} | {"size": _size(row["size"])} for row in rows]
        rows = [row | {name: len(row[name].split()) for name in ("platforms", "models")} for row in rows]
    show(
        rows,
        ["hardware", "platforms", "models", "files", "size", "collected", "provenance", "versions", "state"],
        as_json,
    )


@signatures.command("show")
@click.argument("platform", metavar="HARDWARE[/SOFTWARE]")
@json_option
def signatures_show(platform: str, as_json: bool) -> None:
    """Facts of one dataset, and a line for each of its platforms, or for one. It need not be pulled.

    \b
    Examples:
      hspi signatures show amd-zen3
      hspi signatures show amd-zen3/torch-bf16 --json
    """
    hardware, _, software = platform.partition("/")
    found = datasets.named(store.STORE, hardware)
    if software and software not in found.software:
        raise UnknownName(f"software of {hardware}", software, found.software)
    chosen = {name: row for name, row in found.software.items() if software in ("", name)}
    if as_json:
        click.echo(json.dumps({**_row(found), **found.meta, "software": chosen}, indent=1))
        return
    used = sorted({i for row in chosen.values() for i in row["environments"]})
    click.echo(f"{hardware}  {found.desc}\n")
    facts = [(name, _words(value)) for name, value in found.meta.get("hardware", {}).items() if name != "id"]
    facts += [("state", _state(found)), ("size", _size(found.size))]
    facts += [(f"environment {i}", _words(found.meta["environments"][i])) for i in used]
    for name, value in facts:
        if value:
            click.echo(f"{name:14} {value}")
    click.echo()
    rows = [{"software": name, **{k: _words(v) for k, v in row.items()}} for name, row in chosen.items()]
    show(rows, ["software", "provenance", "engine", "format", "classes", "models", "collected", "environments"], False)


def _row(dataset: datasets.Dataset) -> dict[str, Any]:
    meta = dataset.meta
    return {
        "hardware": dataset.hardware,
        "desc": dataset.desc,
        "platforms": list(dataset.software),
        "models": meta.get("models", []),
        "files": dataset.files,
        "size": dataset.size,
        "collected": meta.get("collected", []),
        "provenance": meta.get("provenance", {}),
        "versions": dataset.versions(),
        "here": dataset.here,
        "versioned": dataset.versioned,
        "state": _state(dataset),
    }


def _state(dataset: datasets.Dataset) -> str:
    if not dataset.versioned:
        return "not versioned"
    return (
        "pulled"
        if dataset.here == dataset.files
        else "not pulled"
        if not dataset.here
        else f"{dataset.here} files here"
    )


def _words(value: Any) -> str:
    """Of a list its items; of a pair of equal days one; of counts and versions `name value`."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(v)}" for name, v in value.items())
    return " ".join(dict.fromkeys(map(str, value))) if isinstance(value, list) else str(value)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@signatures.command("add")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--no-dvc", is_flag=True, help="Copy alone; do not run `dvc add`.")
def signatures_add(folder: Path | None, no_dvc: bool) -> None:
    """Check every signature below FOLDER, copy it to the dataset of its hardware and version that with DVC.

    Without FOLDER, version what `hspi collect` left in data/signatures.

    \b
    Examples:
      hspi signatures add
      hspi signatures add ~/h200-signatures
    """
    if folder is not None:
        for hardware, paths in store.add(folder, versioned=not no_dvc).items():
            click.echo(f"{hardware}: {len(paths)} signatures")
        return
    if no_dvc:
        raise click.UsageError("--no-dvc needs FOLDER: without it there is nothing to copy")
    for dataset in datasets.listing(store.STORE):
        if dataset.here:
            click.echo(f"{dataset.hardware}: {dataset.here} signatures, {store.track(dataset.hardware)}")


COMMANDS = (collect, signatures)
