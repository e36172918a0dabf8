"""One audit of an endpoint's history: into a folder of its own, held against the state before it, recorded, told.

Order matters: the webhook is called before the audit is recorded, so that an alert that a kill cuts off comes again
with the next run rather than never.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hspi import history, tracking, zoo
from hspi.audits import run
from hspi.audits.plan import OutOfReach
from hspi.audits.run import Audit, Request, Say, silent
from hspi.client import shown_url
from hspi.errors import ConfigError, EndpointError, Exit, HspiError
from hspi.history import FAILED, Entry, State
from hspi.monitor.webhook import checked, notify
from hspi.verdict import UNKNOWN

STAMP = "%Y%m%dT%H%M%SZ"
GO_ON = timedelta(hours=1)  # what a kill left unfinished before that stays as it is: its answers are of another time

Auditing = Callable[[Path, str | None], Audit]
"""(folder, claim) → the audit, sealed in the folder; raises EndpointError, and ConfigError where the claim is no
candidate or the folder another audit's."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whose history it is. base_url as it is shown, without any secret."""

    base_url: str
    served: str
    weights_hash: str

    @property
    def key(self) -> str:
        return history.key_of(self.base_url, self.served, self.weights_hash)

    @property
    def about(self) -> dict[str, str]:
        return {"endpoint": self.base_url, "served": self.served, "weights": self.weights_hash}


def check(
    target: Target,
    audit: Auditing,
    root: Path,
    *,
    claim: str | None = None,
    claim_before: bool = True,
    alpha: float = 0.01,
    webhook: str | None = None,
    say: Say = print,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    store: str | Path = ".",
) -> Entry:
    """Audit once and record it in MLflow's store below `store`; the evidence goes to ROOT/<time>.

    audit: makes it, in the folder and with the claim that it is given. Without a claim the class that answered before
    is claimed, so that the audit says whether it still does; not so without `claim_before`, for claims of another kind.
    alpha: what a failed audit is recorded with. webhook: a URL that is sent an alert; say: is told state and outcome.
    A failed endpoint is recorded as such and does not raise. Raises ConfigError if the audit cannot be made as asked.
    """
    entries = tracking.read_history(target.key, root=store)
    state = history.established(entries)
    _tell_again(entries, target, webhook, say, store)
    known = state is not None and state.name != UNKNOWN and claim_before
    claims = [state.name, None] if state and known and not claim else [claim]
    folder, entry, candidates = _audited(audit, _folders(root, entries, now()), claims, alpha)
    entry = history.judged(entry, state, candidates)
    if entry.alert and webhook:
        entry = replace(entry, notified=notify(webhook, payload(target, entry)))
    run_id = tracking.log_check(target.key, target.about, entry, folder, root=store)
    _picture(run_id, target, [*(e for e in entries if e.folder != entry.folder), entry], store)
    for line in lines(entry, state):
        say(line)
    return entry


def lines(entry: Entry, state: State | None) -> list[str]:
    """What to say of an audit, for people."""
    before = f"{state.title} since {state.since}" if state else "nothing: this begins the history"
    now = f"{entry.answer}: {entry.outcome}" if entry.answer else entry.outcome
    out = [f"before        {before}", f"now           {now}, {entry.why}"]
    if entry.news:
        out.append(f"{'ALERT' if entry.alert else 'note':13s} {entry.news}")
    return [*out, f"webhook       {entry.notified}"] if entry.notified else out


def payload(target: Target, entry: Entry) -> dict[str, Any]:
    """What the webhook is sent: `text` for chat services, and every fact."""
    text = f"hspi: {target.served} at {target.base_url} changed: {entry.news}"
    return {"event": "hspi.class-changed", "text": text, "history": target.key, **target.about, **entry.to_dict()}


# ---------------------------------------------------------------- the audit


def _audited(
    audit: Auditing, folders: Sequence[Path], claims: Sequence[str | None], alpha: float
) -> tuple[Path, Entry, list[str]]:
    """(folder, entry, candidates) of the first folder and claim that the audit takes."""
    refused: HspiError | None = None
    for folder in folders:
        for claim in claims:
            started = datetime.strptime(folder.name, STAMP).isoformat() + "+00:00"
            entry = Entry(started, folder.name, FAILED, alpha=alpha, claim=claim)
            try:
                found = audit(folder, claim)
            except EndpointError as error:
                return folder, replace(entry, why=str(error)), []
            except HspiError as error:
                if error.exit_code != Exit.MISUSED or isinstance(error, OutOfReach):
                    raise
                refused = error
                continue
            return (folder, *_concluded(entry, found))
    raise refused or ConfigError("an audit must have a folder")


SAID = ("outcome", "answer", "why", "claim_p_value", "level", "cost")
COUNTED = ("requests", "prompt_tokens", "output_tokens", "unusable")


def _concluded(entry: Entry, found: Audit) -> tuple[Entry, list[str]]:
    made, verdict = found.material, found.verdict
    assert verdict is not None, "not a dry run"
    told = made.told
    known = list(told.platform_ids) if told else []
    said: dict[str, Any] = {n: getattr(verdict, n) for n in (*SAID, *COUNTED)}
    claim = made.settings.claimed
    entry = replace(entry, alpha=made.settings.alpha, claim=None if claim is None else str(claim), **said)
    if (only := made.settings.claim_format) and entry.conclusive:  # then the format is all the class there is
        name = f"number format {only}" if entry.outcome == "consistent" else UNKNOWN
        return replace(entry, answer=name, fits=(name,)), [f"number format {only}"]
    if not entry.conclusive:
        return entry, known
    fits = [m for c in verdict.set_at for m in (told.members_of(c) if told else [c])]
    return replace(entry, fits=tuple(fits)), known


def _folders(root: Path, entries: Sequence[Entry], now: datetime) -> list[Path]:
    """Where to audit: the last folder, if it is young and not on record because of a kill; else, or if that one is
    of other options, a new one.
    """
    recorded = {e.folder for e in entries}
    fresh, oldest = root / now.strftime(STAMP), (now - GO_ON).strftime(STAMP)
    young = sorted(f for f in root.glob("*Z") if f.name > oldest and f.name not in recorded and f != fresh)
    return [*young[-1:], fresh]


# ---------------------------------------------------------------- telling


def _tell_again(entries: Sequence[Entry], target: Target, webhook: str | None, say: Say, store: str | Path) -> None:
    """Alerts that the webhook did not take before."""
    for entry in entries:
        if webhook and entry.alert and entry.notified.startswith("failed"):
            told = replace(entry, notified=notify(webhook, payload(target, entry)))
            tracking.log_check(target.key, target.about, told, None, root=store)
            say(f"webhook       the alert of {entry.time}: {told.notified}")


def _picture(run_id: str, target: Target, entries: Sequence[Entry], store: str | Path) -> None:
    """The history so far beside the newest run's evidence."""
    import tempfile

    from hspi.monitor import picture as drawing

    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / name for name in ("history.png", "history.html")]
        for path in paths:
            drawing.write(path, entries, f"{target.served} at {target.base_url}")
        tracking.attach(run_id, paths, root=store)


# ---------------------------------------------------------------- one at a time


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """The only one that works in `root`. Raises ConfigError."""
    root.mkdir(parents=True, exist_ok=True)
    held = os.open(root / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(f"{root} must be used by one monitor at a time, but another one works there") from error
    finally:
        os.close(held)


def patient(audit: Auditing, retries: int, delay: float, say: Say) -> Auditing:
    """The same, `retries` times more where the endpoint fails, `delay` seconds between tries."""

    def again(folder: Path, claim: str | None) -> Audit:
        for left in range(retries, -1, -1):
            try:
                return audit(folder, claim)
            except EndpointError as error:
                if not left:
                    raise
                say(f"trying again in {delay:g} s, {left} times at most: {error}")
                time.sleep(delay)
        raise AssertionError("unreachable")

    return again


@dataclass(frozen=True, slots=True)
class Watched:
    """One more audit of a target, recorded: `path` is the folder of its evidence."""

    target: Target
    entry: Entry
    path: Path
    weights: str

    def to_dict(self) -> dict[str, Any]:
        about = {"history": self.target.key, **self.target.about, "weights_id": self.weights, "path": str(self.path)}
        return {**about, **self.entry.to_dict()}


def watch(
    request: Request,
    root: Path | None = None,
    *,
    retries: int = 2,
    delay: float = 30.0,
    webhook: str | None = None,
    say: Say = silent,
    store: str | Path = ".",
) -> Watched:
    """Audit an endpoint once more and hold it against its history in `root` (audits/monitor/KEY). See `check`.

    The request's claim is what is claimed each time; without one it is the class that answered before. A failed
    endpoint is tried `retries` times more, then recorded. Raises ConfigError where the request cannot be made as it is
    or no answers would exclude anything at its alpha, and where another monitor works in the folder.
    """
    target = Target(shown_url(request.base_url), request.served, zoo.resolve(request.weights).weights_hash)
    root = root or run.AUDITS / "monitor" / target.key
    url = checked(webhook) if webhook else None

    def audit(folder: Path, claim: str | None) -> Audit:
        own = claim == request.claim
        again = replace(request, claim=claim, claim_hardware=request.claim_hardware if own else None)
        return run.start(again, folder, say=say, reach=True)

    with alone(root):
        entry = check(
            target,
            patient(audit, retries, delay, say),
            root,
            claim=request.claim,
            claim_before=request.claim_format is None and request.claim_hardware is None,
            alpha=request.alpha,
            webhook=url,
            say=say,
            store=store,
        )
    return Watched(target, entry, root / entry.folder, request.weights)
