"""An endpoint's audits in time: what is known of it by now, and what makes one audit an alert.

The state is the set of platforms that no conclusive audit since the last change has excluded. An audit is an alert
when it excludes all of them. Whatever truly serves is excluded by one audit with probability alpha at most
(`audit.sequential`), so each alert of an endpoint that never changed needs at least one audit that was wrong: over n
audits that happens with probability n · alpha at most. A wrong audit may raise two alerts, there and back. What is
inconclusive, and what failed, excludes nothing and says nothing new. A number format that the weights alone
contradict is no such test: its errors are what the evaluation of held-out models found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hspi.errors import DataError, Exit
from hspi.verdict import EXITS, UNKNOWN

CONCLUSIVE = ("consistent", "identified", "contradicted", "unknown")
FAILED = "failed"
ANOTHER_LIBRARY = "is no candidate of this audit; the comparison starts anew"


@dataclass(frozen=True, slots=True)
class Entry:
    """One audit of an endpoint. Times are UTC in ISO 8601.

    outcome: the audit's, or "failed" where the endpoint did. answer: class that it named, "unknown", or "" without an
    audit. fits: platforms (or the one number format) that it did not exclude, ["unknown"] where it excluded all; empty
    where it is not conclusive, or judged a claim by its number format alone.
    before: the state that it was held against. alert: whether that changed, and `news` says how. notified: what
    became of the webhook, "" where none was to be called.
    """

    time: str
    folder: str
    outcome: str
    answer: str = ""
    fits: tuple[str, ...] = ()
    why: str = ""
    alpha: float = 0.01
    claim: str | None = None
    claim_p_value: float | None = None
    level: str = ""
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    unusable: int = 0
    cost: float | None = None
    before: str = ""
    alert: bool = False
    news: str = ""
    notified: str = ""

    @property
    def conclusive(self) -> bool:
        return self.outcome in CONCLUSIVE

    @property
    def tells(self) -> bool:
        """Whether it says which platforms may answer."""
        return self.conclusive and bool(self.fits)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def exit_code(self) -> Exit:
        if self.outcome == FAILED:
            return Exit.ENDPOINT
        return Exit.CONTRADICTED if self.alert else EXITS[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fits": list(self.fits)}

    @classmethod
    def from_dict(cls, data: Any) -> Entry:
        """Raises DataError if the mapping is not one that `to_dict` gave; fields of later versions are left out."""
        try:
            known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            return cls(**{**known, "fits": tuple(known.get("fits", ()))})
        except (TypeError, KeyError) as error:
            raise DataError(f"an entry of a history must hold time, folder and outcome, but: {error!r}") from error


@dataclass(frozen=True, slots=True)
class State:
    """name: class that was named last, or "unknown"; since: when the audit that began it was made."""

    name: str
    fits: frozenset[str]
    since: str

    @property
    def title(self) -> str:
        """The name, or what is left where there is none."""
        some = sorted(self.fits - {UNKNOWN})
        return f"unknown (left: {', '.join(some[:6])})" if self.name == UNKNOWN and some else self.name


def key_of(base_url: str, served: str, weights_hash: str) -> str:
    """Names the history of one endpoint: 12 hexadecimal digits."""
    return hashlib.sha256("\0".join((base_url, served, weights_hash)).encode()).hexdigest()[:12]


def established(entries: Iterable[Entry]) -> State | None:
    """The state after these audits, in their order; None before the first conclusive one."""
    state: State | None = None
    for e in entries:
        if not e.tells:
            continue
        common = frozenset(e.fits) & state.fits if state else frozenset()
        if state and common:
            state = State(state.name if e.answer == UNKNOWN else e.answer, common, state.since)
        else:
            state = State(e.answer, frozenset(e.fits), e.time)
    return state


def judged(entry: Entry, state: State | None, candidates: Collection[str]) -> Entry:
    """The entry held against the state before it. `candidates`: platforms that the audit could exclude."""
    if state is None:
        return entry
    entry = replace(entry, before=state.title)
    claimable = state.fits | {name.rpartition("/")[2] for name in state.fits}  # with hardware, and without
    by_format = entry.outcome == "contradicted" and not entry.fits and entry.claim in claimable
    if by_format:
        entry = replace(entry, fits=(UNKNOWN,))
    if not entry.tells or state.fits & set(entry.fits):
        return entry
    if not state.fits & {*candidates, UNKNOWN}:
        return replace(entry, news=f"{state.title}, which answered before, {ANOTHER_LIBRARY}")
    return replace(entry, alert=True, news=_news(entry, state, by_format))


def _news(entry: Entry, state: State, by_format: bool) -> str:
    if state.fits == {UNKNOWN}:
        then = f"no candidate fitted since {state.since}"
    else:
        how = "by its number format" if by_format else f"at alpha {entry.alpha:g}"
        then = f"{state.title} answered since {state.since} and is excluded {how}"
    if entry.answer != UNKNOWN:
        return f"{then}; {entry.answer} answers now"
    if entry.fits == (UNKNOWN,):
        return f"{then}; what answers now is not known"
    return f"{then}; what answers now is not named, {', '.join(entry.fits[:6])} not excluded"
