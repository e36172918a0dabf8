"""What people read of a detector: a name that says what differs from the one before it, its figures, what it misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hspi.report.headlines import HEADLINES, dishonest, missed, said
from hspi.tracking.lineage import UNVERSIONED, hardware_of
from hspi.tracking.runs import flat

NAMED = 3  # differences in a name; the description has all
_OF_NO_DETECTOR = ("params.demo.", "params.collect.")  # parameters that say what is collected on this machine
_TUNED, _PARAMS = "tuned.", "params."
_LONGEST = 32  # value of a difference

Facts = dict[str, str]


def made_of(
    params: Mapping[str, Any], platforms: Sequence[str], md5s: Mapping[str, str], code: Mapping[str, str]
) -> Facts:
    """What a training is made of, as the run's parameters: so that MLflow's pages compare that too. platforms: full
    ids; md5s: of their datasets, by hardware; code: the tags of the commit."""
    facts = {f"data.{name}": _short_md5(md5s.get(name, UNVERSIONED)) for name in hardware_of(platforms)}
    if platforms:
        facts["data.platforms"] = str(len(platforms))
    if commit := code.get("mlflow.source.git.commit"):
        facts["code"] = commit[:7] + ("+" if code["hspi.git.dirty"] == "true" else "")
    return facts | {name: str(value) for name, value in flat(params).items()}


def detector_name(number: int, now: Facts, before: Facts | None) -> str:
    """ "detector 3: evaluation.seed 2, code a53f54d"; the first is named by its data."""
    differ = [_counted(now)] if before is None else differences(now, before)
    some = ", ".join(differ[:NAMED]) + (f" and {len(differ) - NAMED} more" if len(differ) > NAMED else "")
    return f"detector {number}: {some or 'the same again'}"


def differences(now: Facts, before: Facts) -> list[str]:
    """What is another now, a few words each. The many figures of tuned trees count as one difference."""
    found = []
    for name in [*now, *(n for n in before if n not in now)]:
        if now.get(name) == before.get(name) or name.startswith(_OF_NO_DETECTOR):
            continue
        if name.startswith(_TUNED):
            found.append(f"{name.removeprefix(_TUNED).partition('.')[0]} tuned anew")
        else:
            found.append(f"{name.removeprefix(_PARAMS)} {_short(now.get(name, 'gone'))}")
    return list(dict.fromkeys(found))


def description(metrics: Mapping[str, float], differ: str = "") -> str:
    """Markdown: how many targets are missed and which, the few figures that stand first, and what differs from the
    detector before."""
    judged = [h for h in HEADLINES if h.met(metrics) is not None]
    misses, barred = [said(h, metrics) for h in missed(metrics)], dishonest(metrics)
    honest = "true claims fall, so no champion" if barred else "true claims stand"
    head = f"{len(misses)} of {len(judged)} targets missed; {honest}."
    lines = [said(h, metrics) for h in HEADLINES if h.first and h.key in metrics]
    parts = [head, _listed("Missed", [*misses, *(b for b in barred if b not in misses)]), _listed("Figures", lines)]
    return "\n\n".join(filter(None, [*parts, f"Differs from the detector before: {differ}." if differ else ""]))


def _listed(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"**{title}**", "", *(f"- {line}" for line in lines)]) if lines else ""


def _counted(facts: Facts) -> str:
    counts = {
        "platforms": facts.get("data.platforms", "no"),
        "machines": str(sum(n.startswith("data.") and n != "data.platforms" for n in facts)),
    }
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def _short_md5(md5: str) -> str:
    return md5 if md5 == UNVERSIONED else md5[:8]


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
