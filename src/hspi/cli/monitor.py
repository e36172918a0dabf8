"""`hspi monitor`, `hspi history`: the audits of one endpoint over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hspi.cli.audit import audit, request_of
from hspi.cli.common import json_option, show

OF_ONE_AUDIT = {"out", "sealed", "dry_run", "open_html", "no_mlflow", "as_json"}  # options that make no sense here
COLUMNS = ["time", "outcome", "answer", "alert", "claim_p_value", "tokens", "level", "news"]


@click.command()
@click.option(
    "--out", "root", type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the history; each audit gets a dated one in it. Default: audits/monitor/KEY.",
)  # fmt: skip
@click.option(
    "--retries", type=click.IntRange(0, 100), default=2, show_default=True, help="More tries where the endpoint fails."
)
@click.option("--retry-delay", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds between tries.")
@click.option(
    "--webhook", envvar="HSPI_WEBHOOK",
    help="URL that is sent an alert as JSON; rather set HSPI_WEBHOOK, for it may hold a secret.",
)  # fmt: skip
@click.option("--json", "print_json", is_flag=True, help="Print JSON for machines.")
@click.pass_context
def monitor(
    ctx: click.Context,
    base_url: str | None,
    served: str | None,
    weights: str | None,
    root: Path | None,
    retries: int,
    retry_delay: float,
    webhook: str | None,
    print_json: bool,
    **options: Any,
) -> None:
    """Audit an endpoint once more and say whether its class changed since the last audit.

    For cron, or a Prefect deployment (flows/monitor.py). Every audit is a run in MLflow's experiment hspi-audits, its
    evidence lies in a dated folder. An alert needs that the class of before is excluded at alpha by the new audit; over
    n audits a false alarm has probability n · alpha at most, so choose alpha for the number of audits. Without --claim
    the class of before is claimed. Exit code 0: as before (or a first class), 1: it changed, or the claim is
    contradicted, 3: inconclusive or unknown, 4: the endpoint failed.

    \b
    Example:  hspi monitor --base-url http://127.0.0.1:8000/v1 --model llama --weights llama --alpha 0.0001
    """
    from hspi.monitor.check import watch

    def say(line: str) -> None:
        click.echo(line, err=print_json)

    request = request_of(base_url, served, weights, options)
    found = watch(request, root, retries=retries, delay=retry_delay, webhook=webhook, say=say)
    if print_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    ctx.exit(found.entry.exit_code)


monitor.params[:0] = [p for p in audit.params if p.name not in OF_ONE_AUDIT]


@click.command("history")
@click.option("--base-url", envvar="OPENAI_BASE_URL", help="URL up to /v1. Default: OPENAI_BASE_URL, else all.")
@click.option("--model", "served", help="Name under which the endpoint serves the model. Default: all.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it into FILE.png or FILE.html.")
@json_option
def history(base_url: str | None, served: str | None, plot: Path | None, as_json: bool) -> None:
    """Show what `hspi monitor` found of an endpoint over time; without options, which endpoints there are.

    \b
    Examples:
      hspi history
      hspi history --base-url http://127.0.0.1:8000/v1 --model llama --plot history.html
    """
    from hspi import tracking
    from hspi.client import shown_url
    from hspi.monitor import picture as drawing

    about = {"endpoint": shown_url(base_url) if base_url else None, "served": served}
    wanted = {name: value for name, value in about.items() if value}
    if not wanted and not plot:
        show(_endpoints(), ["endpoint", "served", "audits", "state", "since", "alerts", "last"], as_json)
        return
    entries = tracking.read_history(**wanted)
    if plot:
        drawing.write(plot, entries, " at ".join(filter(None, (served, about["endpoint"]))) or "every endpoint")
    rows = [{**e.to_dict(), "tokens": e.tokens} for e in entries]
    shown = rows if as_json else [_readable(row) for row in rows]
    show(shown, COLUMNS, as_json)


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    p = row["claim_p_value"]
    text = {"time": row["time"][:19].replace("T", " "), "alert": "ALERT" if row["alert"] else ""}
    return {**row, **text, "claim_p_value": "" if p is None else f"{p:.2g}", "news": row["news"] or row["why"]}


def _endpoints() -> list[dict[str, Any]]:
    from hspi import tracking
    from hspi.history import established

    rows = []
    for key, about in tracking.histories().items():
        entries = tracking.read_history(key)
        state = established(entries)
        facts = {"state": state.title if state else "", "since": state.since[:19] if state else ""}
        counts = {"audits": len(entries), "alerts": sum(e.alert for e in entries)}
        rows.append({**about, **facts, **counts, "last": entries[-1].outcome if entries else "", "history": key})
    return rows


COMMANDS = (monitor, history)
