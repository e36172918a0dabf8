"""`hspi serve`, `hspi audit`: a platform behind an API, and an API held against its claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hspi.cli.common import json_option, params_option
from hspi.signatures.store import STORE

if TYPE_CHECKING:
    from hspi.audit.conclude import Conclusion
    from hspi.audit.material import Material, Settings
    from hspi.audit.plan import Plan

DISCOVERY_TOKENS = 4
KEPT = Path(".cache/audit")
CACHE, SCORES, REFERENCES = KEPT / "signatures", KEPT / "scores", KEPT / "references"


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
    from hspi import serve as serving

    serving.serve(platform_id, model, host=host, port=port, max_batch=max_batch, name=served_name)


@click.command()
@click.option("--base-url", envvar="OPENAI_BASE_URL", help="URL up to /v1. Default: OPENAI_BASE_URL.")
@click.option("--model", "served", help="Name under which the endpoint serves the model.")
@click.option("--weights", help="Zoo id, path or hub id of the weights that are said to be served.")
@click.option("--claim", help="Platform id that the provider claims.")
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
@click.option("--detector", type=click.Path(path_type=Path), help="Bundle folder. Default: champion, else the last.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the evidence.")
@click.option("--replay", "replayed", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
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
    replayed: Path | None,
    out: Path | None,
    dry_run: bool,
    open_html: bool,
    no_mlflow: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Hold an OpenAI-compatible endpoint against the claim of its provider.

    The key is read from OPENAI_API_KEY alone. Exit code 0: claim consistent (or platform identified), 1: contradicted,
    3: inconclusive or unknown, 4: the endpoint failed. Started again after a kill, it goes on where it stopped.

    \b
    Examples:
      hspi audit --base-url http://127.0.0.1:8000/v1 --model llama --weights llama --claim torch-bf16
      hspi audit --replay audits/llama-torch-bf16
    """
    from hspi.audit import conduct

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    if replayed is not None:
        plan, found = conduct.replay(replayed, say)
        _finish(ctx, replayed, plan, found, as_json, open_html)
        return
    if not base_url or not served or not weights:
        raise click.UsageError("--base-url (or OPENAI_BASE_URL), --model and --weights are needed")
    if options["claim"] and options["claim_format"]:
        raise click.UsageError("--claim and --claim-format must not be given together")
    said = options["claim"] or options["claim_format"]
    folder = out or Path("audits") / "-".join(filter(None, [_plain(served), said]))
    plan, conclusion = _live(base_url, served, weights, folder, dry_run, say, options)
    if conclusion is None:
        if as_json:
            click.echo(json.dumps(plan.to_dict(), indent=1, sort_keys=True))
        return
    if not no_mlflow:
        from hspi import tracking

        tracking.log_audit(folder)
    _finish(ctx, folder, plan, conclusion, as_json, open_html)


def _live(
    base_url: str, served: str, weights: str, folder: Path, dry_run: bool, say: Any, options: dict[str, Any]
) -> tuple[Plan, Conclusion | None]:
    import asyncio
    import functools
    import os
    import tempfile

    from hspi import zoo
    from hspi.audit import conduct, formats
    from hspi.client import Endpoint

    endpoint = Endpoint(base_url, os.environ.get("OPENAI_API_KEY", ""), options["concurrency"])
    settings, material = _material(base_url, served, weights, options, say)
    refer = functools.partial(formats.refer, zoo.resolve(weights), cache=REFERENCES)

    async def run(where: Path) -> tuple[Plan, Conclusion | None]:
        opened = conduct.open_folder(where, material, settings)
        async with endpoint:
            return await conduct.audit(opened, endpoint, where, say, dry_run=dry_run, cache=SCORES, refer=refer)

    if not dry_run:
        return asyncio.run(run(folder))
    with tempfile.TemporaryDirectory() as scratch:
        return asyncio.run(run(Path(scratch)))


def _material(base_url: str, served: str, weights: str, options: dict[str, Any], say: Any) -> tuple[Settings, Any]:
    """Settings, and a function that makes the material; the detector is opened by that alone."""
    from hspi import params, zoo
    from hspi.audit import candidates, material
    from hspi.client import shown_url

    p = params.load(options["params_file"])
    ref = zoo.resolve(weights)
    kinds = candidates.parse_kinds(options["candidates"])
    settings = material.Settings(
        base_url=shown_url(base_url),
        served=served,
        model=candidates.known_as(ref),
        weights_hash=ref.weights_hash,
        claim=options["claim"],
        alpha=options["alpha"],
        budget=_budget(options, p.probes.length),
        price=options["price"],
        window=options["concurrency"] * 3 // 2 + 1,  # so that one slow answer leaves no slot idle
        candidates=list(kinds),
        seed=p.evaluation.seed,
        order=options["order"],
        claim_format=options["claim_format"],
    )

    def make() -> Material:
        from hspi import judging

        bundle = judging.load_bundle(options["detector"])
        full, _ = candidates.gather(
            bundle, ref, kinds, p, STORE, CACHE, say, claim=settings.claim, params_file=options["params_file"]
        )
        return material.prepare(settings, full, [p.probes.spec(s) for s in p.probes.sets], ref)

    return settings, make


def _budget(options: dict[str, Any], length: int) -> int:
    """Output tokens that probes may take, what discovery needs set aside."""
    budget = options["max_tokens"] or 10**9
    if options["max_cost"] is not None:
        if options["price"] is None:
            raise click.UsageError("--max-cost needs --price")
        budget = min(budget, int(options["max_cost"] * 1e6 / options["price"] / (length + 1)))
    if budget <= DISCOVERY_TOKENS:
        raise click.UsageError(f"the budget must allow more than {DISCOVERY_TOKENS} tokens, but it allows {budget}")
    return int(budget - DISCOVERY_TOKENS)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip(".") or "model"


def _finish(ctx: click.Context, folder: Path, plan: Plan, found: Conclusion, as_json: bool, open_html: bool) -> None:
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "folder": str(folder)}, indent=1))
    else:
        for line in found.lines():
            click.echo(line)
        click.echo(f"bundle        {folder}" + (f"  (report: {folder / 'report.html'})" if open_html else ""))
    ctx.exit(found.exit_code)


COMMANDS = (serve, audit)
