"""The figures that the project is judged by: what was asked, what was held out, what to reach, what stands beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Metrics = Mapping[str, float]

PAPER_PROBES, PAPER_MODEL = "hspi_ld.probes.macro_accuracy", "hspi_ld.unseen_model.macro_accuracy"
PAPER_FAMILY = "hspi_ld.unseen_model.family_accuracy"
BATCH_CLASS = "probes, batch class"
BATCH_SIZE = "probes, batch size"  # of a batch class whose signature is there: its bits are those of each of its sizes
CLASS_KNOWN = "probes"  # of an audit: the library has its batch class


@dataclass(frozen=True, slots=True)
class Headline:
    """One row. `target` is the least (or with `at_most`, the largest) value to reach; nearest and paper are the names
    of the naive candidate's and HSPI-LD's figures on the same split, where they can answer at all."""

    question: str
    held_out: str
    key: str
    target: float | None = None
    at_most: bool = False
    nearest: str = ""
    paper: str = ""
    chance: float | None = None  # where it follows from the definition and is not measured
    brief: bool = False  # also in README.md
    honesty: bool = False  # a miss means that true claims fall: such a detector is no champion
    first: str = ""  # a short name for one of the few that stand first wherever runs are compared

    def met(self, metrics: Metrics) -> bool | None:
        if self.target is None or self.key not in metrics:
            return None
        value = metrics[self.key]
        return value <= self.target if self.at_most else value >= self.target


def _replay(
    question: str, held_out: str, name: str, target: float | None, paper: str = "", first: str = ""
) -> Headline:
    nearest = f"nearest.{name}"
    return Headline(question, held_out, f"replay.{name}", target, nearest=nearest, paper=paper, brief=True, first=first)


def _format(evidence: str, level: str, target: float | None = None, brief: bool = False) -> Headline:
    key = f"{level}.unseen_model.family_accuracy"
    return Headline(f"Which number format? {evidence}", "model", key, target, paper=PAPER_FAMILY, brief=brief)


def _power(question: str, key: str, target: float, first: str = "") -> Headline:
    return Headline(question, CLASS_KNOWN, f"claim.power.{key}", target, brief=True, first=first)


def _true_claim(where: str, held_out: str, key: str, at_most: float, brief: bool = True, first: str = "") -> Headline:
    """How often one is contradicted at most, or a detector is no champion."""
    question, key = f"True claim contradicted{where}", f"claim.{key}"
    return Headline(question, held_out, key, at_most, at_most=True, brief=brief, honesty=True, first=first)


def _contradicted(alpha: str) -> list[Headline]:
    """Over all audits; of the platform and batch class where it is most often; and what the latter's rate may be."""
    at, key, bound = f" at α = {alpha}", f"false_alarm.{alpha}", float(alpha)
    return [
        _true_claim(f"{at}, mean", CLASS_KNOWN, key, bound),
        _true_claim(
            f"{at}, worst class",
            CLASS_KNOWN,
            f"{key}.worst",
            bound,
            first="true claims lost" if alpha == "0.01" else "",
        ),
        _true_claim(f"{at}, worst class, upper bound", CLASS_KNOWN, f"{key}.worst.upper", bound, brief=False),
    ]


HEADLINES = (
    _replay(
        "Which class? 32 probes × top-20", BATCH_SIZE, "probes.macro_accuracy", 0.999, PAPER_PROBES, "32x20 accuracy"
    ),
    _replay("Which class? 8 probes × top-5", BATCH_SIZE, "probes.macro_accuracy.8x5", 0.97, PAPER_PROBES),
    _replay(
        "Which class? 1 probe × top-20", BATCH_SIZE, "probes.macro_accuracy.1x20", 0.95, PAPER_PROBES, "1x20 accuracy"
    ),
    Headline(
        "The pair that is hardest to tell apart",
        BATCH_SIZE,
        "replay.probes.min_pair_accuracy",
        0.99,
        chance=0.5,
        brief=True,
        first="hardest pair",
    ),
    _replay("Which class, its batch class held out?", BATCH_CLASS, "held_out_class.macro_accuracy", None),
    _replay("Which class, on a new model?", "model", "unseen_model.macro_accuracy", 0.995, PAPER_MODEL, "new model"),
    _replay("Which class, when it is a new platform?", "platform", "unseen_platform.macro_accuracy", 0.98),
    _replay("Which platform, on a machine never trained on?", "hardware", "unseen_hardware.macro_accuracy", None),
    Headline(
        "Is it none of the candidates? (AUROC)",
        "platform",
        "replay.open_set.auroc",
        0.995,
        chance=0.5,
        brief=True,
        first="unknown AUROC",
    ),
    Headline(
        "Is it none of the candidates? A whole machine (AUROC)",
        "hardware",
        "replay.unseen_hardware.auroc",
        0.995,
        chance=0.5,
        brief=True,
    ),
    *_contradicted("0.01"),
    *_contradicted("0.05"),
    _true_claim(
        ", its batch class held out", BATCH_CLASS, "contradicted.held_out_class", 0, first="class held out lost"
    ),
    _true_claim(", on a machine never trained on", "hardware", "contradicted.other_hardware", 0, brief=False),
    _power("False claim of another number format contradicted", "format", 0.99),
    _power("False claim of another kernel contradicted", "kernel", 0.95, "kernel lies found"),
    _format("residuals", "residual", 0.99, True),
    _format("log-probabilities alone", "distribution"),
    Headline("Control: labels permuted through the whole run", BATCH_SIZE, "null.macro_accuracy"),
)


def missed(metrics: Metrics) -> list[Headline]:
    """Those whose target was measured and not reached, those of honesty first."""
    return sorted((h for h in HEADLINES if h.met(metrics) is False), key=lambda h: not h.honesty)


def dishonest(metrics: Metrics) -> list[str]:
    """Why a detector of these figures must not be champion, a line for each miss; none where it may be.

    False alarms with the class in the library are measured in every evaluation, so their absence is a miss as well;
    the others need platforms of several batch classes, or machines.
    """
    wanted = [h for h in HEADLINES if h.honesty]
    absent = [h for h in wanted if h.key not in metrics and h.held_out == CLASS_KNOWN]
    found = [said(h, metrics) for h in wanted if h.met(metrics) is False]
    return found + [f"{h.question}: not measured, to reach {goal(h)}" for h in absent]


def said(headline: Headline, metrics: Metrics) -> str:
    """ "Which class, on a new model? 0.9988, to reach ≥ 0.995"."""
    target = f", to reach {goal(headline)}" if headline.target is not None else ""
    question = headline.question if headline.question.endswith("?") else f"{headline.question}:"
    return f"{question} {rate(metrics[headline.key])}{target}"


def first_figures(metrics: Metrics) -> dict[str, float]:
    """The few that stand first wherever runs are compared, by their short names, as far as they were measured."""
    return {h.first: metrics[h.key] for h in HEADLINES if h.first and h.key in metrics}


def rate(value: float | None, places: int = 4) -> str:
    """A share for people: "1", "0.9987", or "–" where it was not measured. Never rounds up to 1."""
    if value is None:
        return "–"
    text = f"{value:.{places}f}"
    if value < 1 and float(text) >= 1:
        text = f"{1 - 10**-places:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def interval(metrics: Metrics, key: str) -> str:
    """ "0.9981 – 1", or nothing where there is none."""
    low, high = metrics.get(f"{key}.ci_low"), metrics.get(f"{key}.ci_high")
    return f"{rate(low)} – {rate(high)}" if low is not None and high is not None else ""


def goal(headline: Headline) -> str:
    if headline.target is None:
        return ""
    if headline.at_most and headline.target == 0:
        return "0"
    return f"{'≤' if headline.at_most else '≥'} {rate(headline.target)}"


def chance(headline: Headline, metrics: Metrics) -> float | None:
    return metrics.get(f"{headline.key}.chance", headline.chance)


def markdown(metrics: Metrics, hosts: Sequence[str] = ()) -> str:
    """A Markdown table of the brief headlines that were measured, and below it on what, and on which machines."""
    rows = ["| question | held out | hspi (95 % interval) | to reach | nearest | HSPI-LD | chance |"]
    rows.append("|---|---|---|---|---|---|---|")
    for h in HEADLINES:
        if not h.brief or h.key not in metrics:
            continue
        bounds = interval(metrics, h.key)
        value = f"**{rate(metrics[h.key])}**" + (f" ({bounds})" if bounds else "")
        cells = [h.question, h.held_out, value, goal(h), rate(metrics.get(h.nearest)), rate(metrics.get(h.paper))]
        rows.append("| " + " | ".join([*cells, rate(chance(h, metrics))]) + " |")
    return "\n".join([*rows, "", measured_on(metrics), *where(hosts)])


def measured_on(metrics: Metrics) -> str:
    """One sentence: how many platforms, models and classes."""
    parts = [f"{int(metrics[k])} {k}" for k in ("platforms", "models") if k in metrics]
    own = {k.removeprefix("classes."): int(v) for k, v in metrics.items() if k.startswith("classes.")}
    by_model = f" ({', '.join(f'{m}: {n}' for m, n in sorted(own.items()))})" if own else ""
    if "classes" in metrics:
        parts.append(f"at least {int(metrics['classes'])} equivalence classes on each model{by_model}")
    return f"Measured on {', '.join(parts)}." if parts else ""


def where(hosts: Sequence[str]) -> list[str]:
    """One line that names the machines, or none where none is known."""
    return [f"Host{'s' if len(hosts) > 1 else ''}: {'; '.join(hosts)}."] if hosts else []
