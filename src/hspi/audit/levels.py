"""The strongest level of evidence that an endpoint and the material allow, and who scores it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hspi.audit.agreement import Rounded, Symbols, Text
from hspi.audit.discovery import Capabilities
from hspi.audit.material import CHAT, Material
from hspi.audit.scoring import Scorer
from hspi.audit.verified import Replay
from hspi.splits import split_probes

TOP_K = 20  # what the verifier knows best; more alternatives than this are not used
FEWEST = 2  # alternatives that a residual needs: the shift of the normaliser takes one


@dataclass(frozen=True, slots=True)
class Level:
    """kind: replay, rounded, text (candidates' signatures); residual (the weights alone); distribution (neither);
    none. context: how the endpoint wraps a prompt, "" for not at all (a key of `Probe.variants`).
    """

    kind: str
    why: str
    decimals: int | None = None
    context: str = ""

    @property
    def name(self) -> str:
        return f"replay, rounded to {self.decimals} decimals" if self.kind == "rounded" else self.kind

    @property
    def sequential(self) -> bool:
        """Whether candidates are tested one answer at a time, so that an audit may stop early."""
        return self.kind in ("replay", "rounded", "text")


def choose_level(cap: Capabilities, material: Material) -> Level:
    if cap.form is None:
        return Level("none", f"neither log-probabilities nor text come ({'; '.join(cap.remarks)})")
    if cap.foreign:
        return Level("none", f"{cap.foreign} tokens are not in the model's vocabulary: another tokenizer serves")
    context = wrapping(cap, material)
    signatures = material.library is not None
    if cap.form.top == 0:
        return _text(cap, context, signatures)
    if signatures and context == "" and material.settings.claim_format is None:
        return _replay(cap)
    numbers = f"top-{cap.top_k} log-probabilities"
    if cap.decimals is not None:
        return Level("none", f"{numbers} are rounded to {cap.decimals} decimals, and {_lacks(context, signatures)}")
    if context is None:
        return Level("distribution", f"{numbers}, but {_around(cap)}, which the model's tokenizer does not explain")
    if not material.weights:
        return Level("distribution", f"{numbers}, but the weights are not at hand")
    how = f"prompts {context}" if context else "prompts as they stand"
    said = f"{numbers} at full precision and the weights, on {how}; {_lacks(context, signatures)}"
    return Level("residual", said, context=context)


def _lacks(context: str | None, signatures: bool) -> str:
    """Why signatures are not used."""
    if not signatures:
        return "these weights have no signatures"
    return "a number format is all that is claimed" if context == "" else "no signature has such prompts"


def _around(cap: Capabilities) -> str:
    count = "an unknown number of" if cap.extra_tokens is None else str(cap.extra_tokens)
    return f"the endpoint puts {count} tokens of its own around the prompt"


def wrapping(cap: Capabilities, material: Material) -> str | None:
    """Empty where the prompt stands alone, else the variant with as many tokens as the endpoint counts, or None."""
    assert cap.form is not None
    if cap.form.ids or cap.extra_tokens == 0:
        return ""
    first = material.warm_up[0]
    fitting = [
        name
        for name, ids in first.variants.items()
        if (name == CHAT) == (cap.form.route == "chat/completions") and len(ids) - len(first.ids) == cap.extra_tokens
    ]
    return fitting[0] if len(fitting) == 1 else None


def _text(cap: Capabilities, context: str | None, signatures: bool) -> Level:
    no = "no log-probabilities come"
    if not cap.greedy:
        return Level("none", f"{no}, and one question got several answers: it does not answer greedily")
    if not signatures:
        return Level("none", f"{no}, and no candidate has signatures of these weights")
    if context != "":
        return Level("none", f"{no}, and {_around(cap)}, which no signature has")
    return Level("text", f"{no}: greedy tokens at near-ties of the reference")


def _replay(cap: Capabilities) -> Level:
    assert cap.form is not None
    how = "token ids" if cap.form.ids else "text that the tokenizer maps back to the same ids, with nothing added"
    if cap.decimals is not None:
        why = f"top-{cap.top_k} log-probabilities, rounded by the endpoint, on prompts given as {how}"
        return Level("rounded", why, cap.decimals)
    return Level("replay", f"top-{cap.top_k} log-probabilities at full precision on prompts given as {how}")


def make_scorer(level: Level, cap: Capabilities, material: Material, cache: Path | None) -> Scorer | None:
    """Who scores answers at this level; None where no candidates are tested one answer at a time."""
    if not level.sequential:
        return None
    assert cap.form is not None
    detector, s, k = material.detector, material.settings, min(TOP_K, cap.top_k)
    usable = material.usable(cap.form.ids)
    if level.kind == "replay":
        split = split_probes(detector.library(s.model).data.probes, s.seed)
        return Replay(detector, s.model, k, split, split.calibrate[usable[split.calibrate]], cache)
    if level.decimals is not None:
        return Rounded(detector, s.model, k, s.seed, level.decimals, usable)
    return Text(detector, s.model, s.seed, Symbols(material.vocabulary, material.special), usable)
