"""`hspi serve`, `hspi audit`: a platform behind an API, and an API held against its claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hspi.cli.common import claim_options, detector_option, json_option, params_option

if TYPE_CHECKING:
    from hspi.audits.run import Audit, Request

DISCOVERY_TOKENS = 4  # as `hspi.audits.discovery` has it, whose import takes a second


@click.command()
@click.option("--platform", "platform_id", required=True, help="Platform id, see `hspi platforms list`.")
@click.option("--model", required=True, help="Zoo id, path or hub id.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Sequences that share a call.")
@click.option("--served-name", help="Model name in the API. Default: the model.")
def serve(platform_id: str, model: str, host: str, port: int, max_batch: int, served_name: str | None) -> None:
    """Serve a model on one platform through an OpenAI-compatible API, with real batching.

    \b
    Example:  hspi serve --platform torch-bf16 --model llama --port 8000
    """
    from hspi.serve import app as serving

    serving.serve(platform_id, model, host=host, port=port, max_batch=max_batch, name=served_name)


@click.command()
@click.option("--base-url", envvar="OPENAI_BASE_URL", help="URL up to /v1. Default: OPENAI_BASE_URL.")
@click.option("--model", "served", help="Name under which the endpoint serves the model.")
@click.option("--weights", help="Zoo id, path or hub id of the weights that are said to be served.")
@claim_options
@click.option("--claim-format", help="Number format, where that is all that is claimed: bf16, int8, ...")
@click.option(
    "--alpha", type=click.FloatRange(1e-9, 0.5), default=0.01, show_default=True, help="False alarms at most."
)
@click.option("--max-tokens", type=click.IntRange(DISCOVERY_TOKENS + 1), help="Output tokens at most.")
@click.option("--max-cost", type=click.FloatRange(0, min_open=True), help="Money at most; needs --price.")
@click.option("--price", type=click.FloatRange(0, min_open=True), help="Of a million tokens, prompt or output.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--order", type=click.IntRange(0), default=0, show_default=True,
              help="Draws the order of the probes; take another for another audit of the same endpoint.")  # fmt: skip
@click.option("--candidates", default="store,emulated", show_default=True, help="Some of local,store,emulated.")
@detector_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the evidence.")
@click.option("--replay", "sealed", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Score a finished audit again, offline.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Find out what the endpoint gives, print the plan, stop.")
@click.option("--html", "open_html", is_flag=True, help="Say where the HTML report is.")
@click.option("--no-mlflow", is_flag=True, help="Do not log the audit as a run.")
@json_option
@params_option
@click.pass_context
def audit(
    ctx: click.Context,
    base_url: str | None,
    served: str | None,
    weights: str | None,
    sealed: Path | None,
    out: Path | None,
    dry_run: bool,
    open_html: bool,
    no_mlflow: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Hold an OpenAI-compatible endpoint against the claim of its provider.

    The key is read from OPENAI_API_KEY alone. Exit code 0: claim consistent (or platform identified), 1: contradicted,
    3: inconclusive or unknown, 4: the endpoint failed. Started again after a kill, it goes on where it stopped. A claim
    of software alone is never contradicted by hardware.

    \b
    Examples:
      hspi audit --base-url http://127.0.0.1:8000/v1 --model llama --weights llama --claim torch-bf16
      hspi audit --base-url http://127.0.0.1:8000/v1 --model llama --weights llama --claim amd-zen4/torch-bf16
      hspi audit --base-url http://127.0.0.1:8000/v1 --model llama --weights llama --claim-hardware 'nvidia-h100-*'
      hspi audit --replay audits/llama-torch-bf16
    """
    from hspi.audits import run

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    if sealed is not None:
        _finish(ctx, run.rescore(sealed, say), as_json, open_html)
        return
    request = request_of(base_url, served, weights, options)
    found = run.start(request, out, say=say, dry_run=dry_run)
    if found.verdict is None:
        if as_json:
            click.echo(json.dumps(found.plan.to_dict(), indent=1, sort_keys=True))
        return
    if not no_mlflow:
        from hspi import tracking

        tracking.log_audit(found.folder)
    _finish(ctx, found, as_json, open_html)


def request_of(base_url: str | None, served: str | None, weights: str | None, options: dict[str, Any]) -> Request:
    """The request that the options of `hspi audit` make."""
    from hspi.audits.run import Request

    if not base_url or not served or not weights:
        raise click.UsageError("--base-url (or OPENAI_BASE_URL), --model and --weights are needed")
    named = {"params" if name == "params_file" else name: value for name, value in options.items()}
    return Request(base_url=base_url, served=served, weights=weights, **named)


def _finish(ctx: click.Context, found: Audit, as_json: bool, open_html: bool) -> None:
    verdict, folder = found.verdict, found.folder
    assert verdict is not None
    if as_json:
        click.echo(json.dumps({**verdict.to_dict(), "folder": str(folder)}, indent=1))
    else:
        for line in verdict.lines():
            click.echo(line)
        click.echo(f"folder        {folder}" + (f"  (report: {folder / 'report.html'})" if open_html else ""))
    ctx.exit(verdict.exit_code)


COMMANDS = (serve, audit)
