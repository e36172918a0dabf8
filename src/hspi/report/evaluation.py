"""The report of an evaluation: its sections, from headline figures to how they were measured."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hspi.report import machines
from hspi.report.drawing import Picture
from hspi.report.headlines import HEADLINES, Headline, chance, goal, interval, measured_on, rate
from hspi.report.html import Section, folded, image, page, table
from hspi.report.machines import named
from hspi.report.read import MARKS, Evaluation, Row, hardware, number, pair_matrix

CAPTIONS = {
    "accuracy_by_platform": "How often the class of a platform is named among all of them, by machine: a dot, and its "
    "95 % interval over probes. Blue is 0.99 and above; a hollow dot is an emulated platform. Members of one class "
    "share its figure.",
    "pair_accuracy": "Each cell: how often an observation of one platform is told from the other, the rest not being "
    "offered, on the model where this is hardest. Blocks are machines, fine lines between them part engines; a "
    "violet name is an emulated machine. Blue is 0.99 and above; where a number stands, it is the percentage of a cell "
    "below, rounded down. Grey: one equivalence class on every model, so there is nothing to tell; a grey corner: one "
    "class on some model. Palest: pairs that are never nearest to one another, which were not compared. The frame "
    "marks the lowest pair.",
    "accuracy_by_tokens": "Macro accuracy over all classes, with 95 % intervals over probes for the larger top-k. Held "
    "out: probes and batch size. “Nearest” picks the candidate with the least squared distance, untrained. The "
    "paper’s HSPI-LD reads 32 tokens with 64 values each.",
    "open_set": "Scores with the true platform among the candidates, and the same observations with it taken away. "
    "Neither was trained on: held out is the platform.",
    "reliability": "On the dashed line, a stated probability is the share of right answers. Beside each point: how "
    "many samples. Calibrated on probes that neither trained the detector nor are tested here.",
    "by_factor": "Even a wrong answer may have the right hardware, number format or engine. Held out: probes and batch "
    "size.",
    "residuals_one_probe": "Log-probability less the float64 reference of the same weights and tokens, median removed. "
    "A platform has a pattern and a scale of its own; where it keeps them when the batch changes, circles fall on the "
    "tips of the bars. Mind the scale of each row. No detector was involved.",
    "residual_sizes": "What the detector of number formats reads. Many formats lie octaves apart; where two overlap, "
    "as platforms of one format do, their patterns still differ.",
}

FEW_ALONE = 25  # platforms that a paragraph may list
CONTRADICTIONS = {
    "claim.contradicted.held_out_class": "True claims contradicted where the library lacks the batch class",
    "claim.contradicted.other_hardware": "True claims of software contradicted on a machine that the library lacks",
    "claim.power.format": "False claims contradicted whose number format is another",
    "claim.power.kernel": "False claims contradicted of the same number format and another kernel",
    "claim.power.hardware": "False claims contradicted of the same software on another machine",
}


def render(evaluation: Evaluation, pictures: Sequence[Picture], more: Sequence[Section] = ()) -> str:
    """The whole page as text; `more` sections stand before the methods."""
    shown = {p.name: p for p in pictures}
    sections = [
        ("figures", "Headline figures", _headlines(evaluation)),
        ("platforms", "Every platform", _figures(shown, "accuracy_by_platform") + machines.by_platform(evaluation)),
        ("pairs", "Every pair of platforms", _figures(shown, "pair_accuracy") + _pairs(evaluation)),
        ("spans", "Classes that span machines", machines.spans(evaluation)),
        ("hardware", "A machine never trained on", machines.held_out(evaluation)),
        ("tokens", "How many tokens it takes", _tokens(evaluation) + _figures(shown, "accuracy_by_tokens")),
        ("classes", "What cannot be told apart", _classes(evaluation)),
        ("claims", "Claims, and platforms nobody knows", _claims(evaluation) + _figures(shown, "open_set")),
        ("trust", "Whether a stated probability can be believed", _figures(shown, "reliability", narrow=True)),
        ("residuals", "What it rests on", _figures(shown, "residuals_one_probe", "residual_sizes")),
        ("factors", "What a wrong answer still gets right", _figures(shown, "by_factor")),
        *more,
        ("method", "How it was measured", METHOD),
    ]
    sections = [s for s in sections if s[2]]
    menu = "".join(f'<a href="#{id}">{escape(title)}</a> ' for id, title, _ in sections)
    body = "".join(f'<section id="{id}"><h2>{escape(title)}</h2>{text}</section>' for id, title, text in sections)
    return page("hspi: evaluation", f"<h1>Which platform answered?</h1>{_lead(evaluation)}<nav>{menu}</nav>{body}")


# ---------------------------------------------------------------- sections


def _lead(evaluation: Evaluation) -> str:
    kinds = [evaluation.provenance(p) for p in evaluation.ids()]
    counts = ", ".join(f"{kinds.count(k)} {k} {MARKS.get(k, '?')}" for k in (*MARKS, "unknown") if k in kinds)
    kept = f"<p>{escape(measured_on(evaluation.metrics))} Platforms by what did the arithmetic: {escape(counts)}.</p>"
    legend = (
        f'<p class="note">{MARKS["real"]} <b>real</b>: it ran on that hardware as it is. '
        f'<span class="capped">{MARKS["capped"]} <b>capped</b></span>: a real CPU, held to a lower instruction set by '
        "its library’s own switch; it stands in for that older CPU and is not one. "
        f'<span class="emulated">{MARKS["emulated"]} <b>emulated</b></span>: the format’s rounding was done in '
        "software; no device that has it was measured.</p>"
    )
    return (
        '<p class="lead">hspi infers the hardware and software that serve a language model from the log-probabilities '
        f"they answer with. This is how well it does that here, on what it had not seen.</p>{kept}{legend}"
    )


def _headlines(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    rows = [_headline_row(h, evaluation) for h in HEADLINES if h.key in metrics]
    if not rows:
        return ""
    head = ("question", "held out", "hspi", "95 % interval", "to reach", "nearest", "HSPI-LD", "chance")
    note = (
        '<p class="note">Held out: never seen in training, and its samples disjoint from those that trained and '
        "calibrated. Nearest: the candidate with the least distance, untrained. HSPI-LD: the method of the paper "
        "(arXiv 2411.05197), trained and scored on the same split by its own protocol: samples of 4 prompts × 8 tokens "
        "× 256 values whatever the row’s size. “–”: not measured, or no answer: HSPI-LD has none for a platform that "
        "it was not trained on. Intervals: bootstrap over probes, never narrower than Wilson’s.</p>"
    )
    return table(head, rows, "  nnnnnn", stack=True) + note


def _headline_row(h: Headline, evaluation: Evaluation) -> list[str]:
    metrics = evaluation.metrics
    met = h.met(metrics)
    verdict = "" if met is None else f' class="{"met" if met else "missed"}"'
    word = "" if met is None else (" ✓" if met else " ✗ missed")
    return [
        escape(h.question),
        escape(h.held_out),
        f"<b{verdict}>{rate(metrics[h.key])}</b>",
        interval(metrics, h.key),
        f"<span{verdict}>{goal(h)}{word}</span>" if h.target is not None else "",
        rate(metrics.get(h.nearest)),
        rate(metrics.get(h.paper)),
        rate(chance(h, metrics)),
    ]


def _pairs(evaluation: Evaluation) -> str:
    pairs = pair_matrix(evaluation)
    values = pairs.accuracy[np.triu_indices(len(pairs.platforms), 1)]
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    low, perfect = int((values < 0.99).sum()), int((values == 1).sum())
    skipped = int(np.triu(pairs.skipped()).sum())
    text = f"<p>{len(values)} pairs of platforms in different classes: {perfect} without an error, {low} below 0.99. "
    text += "Each counts on the model where it is hardest."
    if skipped:
        text += f" {skipped} pairs were not compared: neither platform was ever the other’s nearest."
    text += "</p>"
    upper = np.argwhere(np.triu(pairs.accuracy < 0.999))
    worst = sorted(upper.tolist(), key=lambda ij: pairs.accuracy[ij[0], ij[1]])[:8]
    if not worst:
        return text + machines.every_pair(evaluation)
    rows = [[named(evaluation, pairs.platforms[i]), named(evaluation, pairs.platforms[j]), rate(pairs.accuracy[i, j])]
            for i, j in worst]  # fmt: skip
    lowest = table(("platform", "platform", "accuracy"), rows, "  n")
    return f"{text}<p>The lowest:</p>{lowest}{machines.every_pair(evaluation)}"


def _tokens(evaluation: Evaluation) -> str:
    needed = evaluation.metrics.get("replay.tokens_to_99")
    if "accuracy_by_tokens" not in evaluation.tables:
        return ""
    if needed is None:
        return "<p>No number of tokens that was tried reaches a macro accuracy of 0.99.</p>"
    word = "token" if needed == 1 else "tokens"
    return f"<p><b>{int(needed)}</b> {word} with their top-20 log-probabilities reach a macro accuracy of 0.99.</p>"


def _classes(evaluation: Evaluation) -> str:
    rows = evaluation.tables.get("classes", [])
    if not rows:
        return ""
    merged: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        merged.setdefault(tuple(row["platforms"].split()), []).append(row["model"])
    models = list(dict.fromkeys(r["model"] for r in rows))
    order = {p: i for i, p in enumerate(evaluation.ids())}
    lines = [
        [", ".join(named(evaluation, m) for m in members), "all" if len(on) == len(models) else escape(", ".join(on))]
        for members, on in sorted(merged.items(), key=lambda item: (len(item[0]) == 1, order[item[0][0]]))
        if len(members) > 1
    ]
    counts = ", ".join(f"{m}: {sum(r['model'] == m for r in rows)}" for m in models)
    alone = [m for m, on in merged.items() if len(m) == 1 and len(on) == len(models)]
    text = (
        f"<p>Equivalence classes by model: {escape(counts)}. Two platforms are one class if every setting answers with "
        "the same bits, or if telling them apart across settings is not better than chance on the training probes. "
        "Nobody declares it, and it differs by model. A verdict names a class with all its members.</p>"
    )
    if lines:
        text += table(("class of several platforms", "on the models"), lines)
    return text + _singles(evaluation, sorted((p for (p,) in alone), key=order.__getitem__))


def _singles(evaluation: Evaluation, ids: list[str]) -> str:
    """Platforms that are a class of their own, by machine; folded away where they are many."""
    if not ids:
        return ""
    by_machine: dict[str, list[str]] = {}
    for p in ids:
        by_machine.setdefault(hardware(p), []).append(named(evaluation, p))
    what = f"A class of its own on every model ({len(ids)})"
    lists = [", ".join(names) for names in by_machine.values()]
    if len(ids) <= FEW_ALONE:
        return f"<p>{what}: {', '.join(lists)}.</p>"
    return folded(what, "".join(f"<p>{text}.</p>" for text in lists))


def _claims(evaluation: Evaluation) -> str:
    rows, metrics = evaluation.tables.get("false_alarm", []), evaluation.metrics
    text = ""
    if rows:
        head = ["α", "true claims contradicted", "95 % interval", "audits", "worst class", "its upper bound", "which"]
        lines = [_alarm(evaluation, row) for row in rows]
        text = table([*head, "excluded by the test alone"], lines, "nnnnnn n", stack=True)
        text += (
            '<p class="note">Rejected: the test excludes the claim at α, and something besides speaks against it. '
            "Worst is the largest rate of any platform in any batch class, which the mean hides; its bound is "
            "one-sided, 95 %.</p>"
        )
    lines = [[words, f"<b>{rate(metrics[key])}</b>"] for key, words in CONTRADICTIONS.items() if key in metrics]
    if lines:
        text += table(("of all audits", "share"), lines, " n")
    auroc = metrics.get("replay.open_set.auroc")
    if auroc is not None:
        text += f"<p>Known from unknown platforms: AUROC <b>{rate(auroc)}</b> (chance 0.5).</p>"
    return text


def _alarm(evaluation: Evaluation, row: Row) -> list[str]:
    """A row of the table of true claims; "–" for what the evaluation did not measure."""
    bounds = f"{rate(number(row, 'ci_low'))} – {rate(number(row, 'ci_high'))}"
    worst, upper = (rate(number(row, c)) if row.get(c) else "–" for c in ("worst", "worst_upper"))
    where = row.get("worst_platform") or ""
    which = f"{named(evaluation, where)}, {escape(row.get('worst_class') or '?')}" if where else "–"
    alone = rate(evaluation.metrics.get(f"claim.excluded.{row['alpha']}"))
    alpha, n = f"{number(row, 'alpha'):g}", f"{int(number(row, 'n')):,}"
    return [alpha, rate(number(row, "rate")), bounds, n, worst, upper, which, alone]


def _figures(shown: dict[str, Picture], *names: str, narrow: bool = False) -> str:
    shape = ' class="narrow"' if narrow else ""
    return "".join(
        f"<figure{shape}>{image(shown[n].alt, shown[n].png)}<figcaption>{escape(CAPTIONS[n])}</figcaption></figure>"
        for n in names
        if n in shown
    )


METHOD = """<ul>
<li><b>Held-out probes and batch size.</b> A quarter of the prompts trains, a quarter calibrates, half is scored. No
answer that is scored was observed in training. A batch class (batch sizes that give the same bits) has its signature
among the candidates; a platform whose answers vary with their company has the observed ones left out there.</li>
<li><b>Held-out batch class.</b> The same of platforms with several classes, the observed one not among the
candidates.</li>
<li><b>Held-out model.</b> The detector was trained on the other models alone; the candidates’ signatures on the new one
are given to it. So are they for a held-out platform, with its equivalence class kept whole on one side.</li>
<li><b>Held-out hardware.</b> All platforms of one machine are kept from training; then its signatures are given to the
detector, or not.</li>
<li><b>Unknown.</b> The same observations with the true class taken out of the candidates.</li>
<li><b>Control.</b> With the labels of the training samples permuted, accuracy must fall to chance.</li>
<li><b>Not shown here.</b> A machine of a kind that is not among these may differ. Capped and emulated platforms, every
virtual GPU among them, show what their arithmetic does and nothing about the devices’ own choice of kernels.</li>
</ul>"""
