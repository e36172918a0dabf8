"""One suite over all levels of evidence, over HTTP. A level is tested by standing in LEVELS; SITUATIONS says where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from functools import cache
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

import audit_world as world
from hspi.audits import rules
from hspi.audits.discovery import DISCOVERY_TOKENS, Capabilities, Form
from hspi.audits.levels import choice
from hspi.audits.levels.agreement import Rounded, Text
from hspi.audits.levels.choice import LEVELS, choose
from hspi.audits.levels.distribution import Distribution
from hspi.audits.levels.level import Level, Offer
from hspi.audits.levels.nothing import Nothing
from hspi.audits.levels.replay import Replay
from hspi.audits.levels.residual import Residual
from hspi.audits.plan import Plan
from hspi.audits.rules import TOO_MANY, Findings
from hspi.audits.run import Audit, rescore, start
from hspi.client import Endpoint, Retry
from hspi.verdict import EXITS, Verdict
from misbehaving import NO_ANSWER, NO_NUMBERS, Misbehaving, serving

pytestmark = pytest.mark.usefixtures("packed_once")


@dataclass(frozen=True)
class Situation:
    """An endpoint and what is at hand. more, then: one that offers more, and the level that is chosen there; tells:
    whether the level contradicts LIE.
    """

    lasting: str = ""
    signatures: bool = True
    weights: bool = False
    claim_format: str | None = None
    more: Situation | None = None
    then: type[Level] | None = None
    tells: bool = False


SITUATIONS: dict[type[Level], Situation] = {
    Replay: Situation(tells=True),
    Rounded: Situation("rounded-4", more=Situation(), then=Replay, tells=True),
    Text: Situation("no-logprobs-ever", more=Situation("rounded-4"), then=Rounded),
    # text is no more than numbers inside a template: without the template they are
    Residual: Situation("chat-template", weights=True, more=Situation("", weights=True), then=Replay, tells=True),
    Distribution: Situation("chat-template", more=Situation("chat-template", weights=True), then=Residual),
    Nothing: Situation("rounded-4", signatures=False, more=Situation(signatures=False), then=Distribution),
}
HONEST = {"bf16": 17, "bf16-eager": 18, "int8": 19, "fp32": 20}  # platform: a setting that no signature has
TRUE, LIE = ("int8", "int8"), ("int8", "bf16")  # what serves, what is claimed
BUDGET = 80  # all probes of this world that are there to ask
QUICK = Retry(attempts=4, answers=2, first=0.001, longest=0.01)

every = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.kind)


def situation(level: type[Level]) -> Situation:
    if level not in SITUATIONS:
        pytest.fail(f"SITUATIONS of {Path(__file__).name} must say where {level.__name__} is chosen, but it does not")
    return SITUATIONS[level]


@dataclass(frozen=True)
class Conducted:
    audit: Audit
    folder: Path
    asked: int  # probes that reached the server

    @property
    def verdict(self) -> Verdict:
        assert self.audit.verdict is not None
        return self.audit.verdict

    @property
    def level(self) -> Level:
        return choose(self.audit.plan.capabilities, self.audit.material)


def conduct(
    where: Situation, server: Misbehaving, claim: str | None, folder: Path, budget: int, dry_run: bool = False
) -> Conducted:
    at_hand = {"signatures": where.signatures, "weights": where.weights}
    with serving(replace(server, lasting=where.lasting)) as server:
        made = world.material(server.url, claim, budget, claim_format=where.claim_format, **at_hand)
        supply, endpoint = world.Supply(made), Endpoint(server.url, "", 4, QUICK, deadline=5)
        found = start(supply.request(), folder, supply=supply, endpoint=endpoint, dry_run=dry_run)
    return Conducted(found, folder, len(server.probes) - len(made.warm_up))


class Audits:
    """Each audit once, whichever tests look at it."""

    def __init__(self, root: Path) -> None:
        self.root, self.number = root, 0
        self.of = cache(self._conduct)

    def _conduct(
        self, where: Situation, serves: str, claim: str | None, setting: int = 17, faults: tuple[str, ...] = (),
        spoilt: float = 0.0, budget: int = BUDGET, dry_run: bool = False,
    ) -> Conducted:  # fmt: skip
        self.number += 1
        server = Misbehaving(serves, faults, spoilt=spoilt, setting=setting)
        return conduct(where, server, claim, self.root / str(self.number), budget, dry_run)


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audits]:
    yield Audits(tmp_path_factory.mktemp("levels"))


# ---------------------------------------------------------------- what it is, and when it is chosen


@every
def test_a_level_has_a_kind_of_its_own_and_says_in_a_sentence_what_it_can_tell(level: type[Level]) -> None:
    assert [other.kind for other in LEVELS].count(level.kind) == 1
    assert level.limits[0].isupper() and level.limits.endswith(".")
    assert level.most is None or level.most >= 0
    assert situation(level)


@every
def test_it_is_chosen_in_its_situation_and_every_record_names_it(level: type[Level], audits: Audits) -> None:
    found = audits.of(situation(level), *TRUE)
    offer = Offer(found.audit.plan.capabilities, found.audit.material)
    stronger = LEVELS[: LEVELS.index(level)]
    assert type(found.level) is level and [other for other in stronger if other.of(offer)] == []
    assert found.level.why and found.audit.plan.why == found.level.why
    for name in ("plan.json", "verdict.json"):
        assert json.loads((found.folder / name).read_text("utf-8"))["level"] == found.level.name
    assert escape(level.limits) in (found.folder / "report.html").read_text("utf-8")


@every
def test_a_stronger_one_is_chosen_where_more_is_offered(level: type[Level], audits: Audits) -> None:
    where = situation(level)
    if where.more is None or where.then is None:
        assert level is LEVELS[0], "there is a stronger one"
        return
    found = audits.of(where.more, *TRUE, dry_run=True)
    assert type(found.level) is where.then and LEVELS.index(where.then) < LEVELS.index(level)
    assert found.audit.verdict is None and not found.folder.exists()


def test_more_never_gives_a_weaker_level() -> None:
    """Everything that may be offered, one thing more at a time."""
    axes: tuple[tuple[Any, ...], ...] = (
        (None, 0, 20),  # alternatives; None: nothing comes
        (3, 0),  # foreign tokens
        (4, None),  # decimals
        (None, world.TEMPLATE, 0),  # tokens around the prompt
        *[(False, True)] * 3,  # greedy, signatures, weights
    )

    @cache
    def material(signatures: bool, weights: bool, claim_format: str | None) -> Any:
        return world.material("http://h", None, 4, claim_format=claim_format, signatures=signatures, weights=weights)

    def strength(offered: tuple[int, ...], claim_format: str | None) -> int:
        top, foreign, decimals, extra, greedy, *at_hand = (axis[i] for axis, i in zip(axes, offered, strict=True))
        form = None if top is None else Form("chat/completions", False, False, top)
        cap = Capabilities(form, top or 1, greedy=greedy, decimals=decimals, extra_tokens=extra, foreign=foreign)
        return LEVELS.index(type(choose(cap, material(*at_hand, claim_format))))

    reached = set()
    for claim_format in (None, "bf16"):
        for offered in product(*(range(len(axis)) for axis in axes)):
            own = strength(offered, claim_format)
            reached.add(LEVELS[own])
            for i in (i for i, axis in enumerate(axes) if offered[i] + 1 < len(axis)):
                more = (*offered[:i], offered[i] + 1, *offered[i + 1 :])
                assert strength(more, claim_format) <= own, (offered, more, claim_format)
    assert reached >= {Replay, Nothing}


@pytest.mark.parametrize("level", [Rounded, Text], ids=lambda level: level.kind)
def test_a_claimed_format_is_no_matter_of_candidates(level: type[Level], audits: Audits) -> None:
    """Without numbers that tell formats nothing is asked: to identify a platform would answer another question."""
    found = audits.of(replace(SITUATIONS[level], claim_format="bf16", weights=True), "int8", None).verdict
    assert (found.level, found.outcome, found.probes) == (Nothing.kind, "inconclusive", 0)
    assert "a number format is all that is claimed" in found.why


# ---------------------------------------------------------------- what it costs


@every
@pytest.mark.parametrize("budget", [BUDGET, 14])
def test_no_more_is_asked_than_the_level_and_the_budget_allow(level: type[Level], budget: int, audits: Audits) -> None:
    found = audits.of(situation(level), *TRUE, budget=budget)
    asked, allowed = found.verdict.requests, len(found.audit.plan.probes)
    assert found.asked == asked <= allowed <= (BUDGET if level.most is None else level.most)
    assert asked + found.audit.plan.capabilities.tokens - DISCOVERY_TOKENS <= budget
    assert asked > 0 or level.most == 0


# ---------------------------------------------------------------- what it says


@every
@pytest.mark.parametrize("platform", HONEST)
def test_an_honest_claim_is_never_contradicted(level: type[Level], platform: str, audits: Audits) -> None:
    found = audits.of(situation(level), platform, platform, HONEST[platform]).verdict
    assert found.outcome in ("consistent", "inconclusive")


@every
def test_a_false_claim_falls_where_the_level_can_tell(level: type[Level], audits: Audits) -> None:
    where = situation(level)
    found = audits.of(where, *LIE).verdict
    assert found.outcome == "contradicted" if where.tells else found.outcome in ("contradicted", "inconclusive")
    if level in (Distribution, Nothing):
        assert found.outcome == "inconclusive"
    assert found.why


@pytest.mark.parametrize(
    ("serves", "claimed", "outcome"),
    [("int8", "int8", "consistent"), ("int8", "bf16", "contradicted"), ("bf16", "int8", "inconclusive")],
)
def test_a_claimed_format_falls_to_a_coarser_one_alone(serves: str, claimed: str, outcome: str, audits: Audits) -> None:
    where = replace(SITUATIONS[Residual], claim_format=claimed)
    found = audits.of(where, serves, None)
    assert (type(found.level), found.verdict.outcome) == (Residual, outcome)
    assert found.verdict == rescore(found.folder).verdict and list(found.verdict.formats) == ["bf16", "fp32", "int8"]


@every
@pytest.mark.parametrize("faults", [NO_ANSWER, NO_NUMBERS], ids=["no answer", "no numbers"])
@pytest.mark.parametrize("share", [0.06, 0.4])
@pytest.mark.parametrize(("serves", "claim"), [TRUE, LIE], ids=["true", "lie"])
def test_unusable_answers_neither_help_nor_accuse(
    level: type[Level], faults: tuple[str, ...], share: float, serves: str, claim: str, audits: Audits
) -> None:
    where = situation(level)
    found = audits.of(where, serves, claim, faults=faults, spoilt=share).verdict
    honest = (serves, claim) == TRUE
    assert found.outcome in (("consistent", "inconclusive") if honest else ("contradicted", "inconclusive"))
    assert found.probes + found.unusable == found.requests
    if found.unusable > TOO_MANY * found.requests:
        assert found.outcome == "inconclusive" and (not found.requests or "unusable" in found.why)
    elif where.tells and not honest:
        assert found.outcome == "contradicted", "what is missing speaks for nobody"
    if level.most != 0 and (level is not Text or faults is NO_ANSWER):  # text is read whatever numbers come
        assert (found.unusable > TOO_MANY * found.requests) == (share > TOO_MANY) or level is Text


@every
@pytest.mark.parametrize(("serves", "claim"), [TRUE, LIE], ids=["true", "lie"])
def test_tokens_of_another_vocabulary_conclude_nothing(
    level: type[Level], serves: str, claim: str, audits: Audits
) -> None:
    """From the first question on, or in the midst of an audit."""
    midway = audits.of(situation(level), serves, claim, faults=("foreign-tokens",), spoilt=0.4).verdict
    assert (midway.outcome, midway.level) == ("inconclusive", audits.of(situation(level), *TRUE).level.name)
    if level.most != 0:
        assert "vocabulary" in midway.why or "unusable" in midway.why
    if not situation(level).lasting:
        whole = audits.of(Situation("foreign-tokens"), serves, claim).verdict
        assert (whole.outcome, whole.level) == ("inconclusive", Nothing.kind)


# ---------------------------------------------------------------- what stays


@every
@pytest.mark.parametrize(("serves", "claim"), [TRUE, LIE], ids=["true", "lie"])
def test_a_sealed_audit_scores_to_its_verdict_again(
    level: type[Level], serves: str, claim: str, audits: Audits
) -> None:
    found = audits.of(situation(level), serves, claim)
    again = rescore(found.folder)
    assert again.verdict == found.verdict and again.plan == found.audit.plan
    assert found.verdict.exit_code == EXITS[found.verdict.outcome]
    assert Verdict(**json.loads((found.folder / "verdict.json").read_text("utf-8"))) == found.verdict
    assert Verdict(**json.loads(json.dumps(found.verdict.to_dict(), allow_nan=False))) == found.verdict
    with pytest.raises(FrozenInstanceError):
        found.verdict.outcome = "consistent"  # type: ignore[misc]


# ---------------------------------------------------------------- one file and one line


class First(Level):
    """A level of one's own: all that a new file holds."""

    kind: ClassVar[str] = "first"
    limits: ClassVar[str] = "Whether <anything> comes."
    most: ClassVar[int | None] = 3

    @classmethod
    def of(cls, offer: Offer) -> Self | None:
        return cls(offer, "something comes") if offer.top else None

    def conclude(self, plan: Plan, found: Findings) -> Verdict:
        return rules.inconclusive(self.material, plan, found, f"{len(found.seen)} answers came", rules.EXACT)


def test_a_level_is_added_by_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "LEVELS", (First, *LEVELS))
    found = conduct(Situation(), Misbehaving(), "bf16", tmp_path / "a", BUDGET)
    assert (found.verdict.level, found.verdict.why, found.asked) == ("first", "3 answers came", 3)
    assert "first: something comes" in (report := (tmp_path / "a" / "report.html").read_text("utf-8"))
    assert escape(First.limits) in report and rescore(tmp_path / "a").verdict == found.verdict
    assert type(conduct(SITUATIONS[Text], Misbehaving(), "bf16", tmp_path / "b", 14).level) is Text
    with pytest.raises(pytest.fail.Exception, match=r"SITUATIONS .* First"):
        situation(First)
