"""An audit from a request to its verdict. The same code runs live, after a kill and on a sealed folder: only where
answers come from differs.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from hspi import judging, params, zoo
from hspi.audits import candidates, material, page
from hspi.audits.answers import Names
from hspi.audits.candidates import Say
from hspi.audits.discovery import DISCOVERY_TOKENS, discover
from hspi.audits.folder import Records, check_seal, is_sealed, load, open_folder, seal
from hspi.audits.gathering import gather, reader
from hspi.audits.levels import residual
from hspi.audits.levels.agreement import Symbols
from hspi.audits.levels.choice import choose
from hspi.audits.levels.level import Refer
from hspi.audits.material import Material, Settings
from hspi.audits.plan import Plan
from hspi.client import Endpoint, shown_url
from hspi.errors import ConfigError, DataError
from hspi.files import read_json, write_json
from hspi.platforms.claim import Claim
from hspi.signatures.store import STORE
from hspi.verdict import Verdict

AUDITS, KEPT = Path("audits"), Path(".cache/audit")


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be audited, and what that may cost.

    base_url: up to /v1; served: the model's name there; weights: zoo id, folder or hub id of the weights that are said
    to be served. claim: software (`torch-bf16`, on any hardware), a platform (`amd-zen4/torch-bf16`) or a class by its
    name; claim_hardware: a pattern (`nvidia-h100-*`), alone or beside it; or claim_format, a number format alone.
    alpha: false alarms at most. max_tokens: output tokens at most; max_cost: money at most, at `price` for a million
    tokens of any kind. concurrency: questions in flight; order: draws the order of the probes, another one for another
    audit. candidates: some of local,store,emulated. detector: a folder, else the registry's champion, else the last
    trained.
    The key is read from OPENAI_API_KEY alone. Raises ConfigError where the parts contradict each other.
    """

    base_url: str
    served: str
    weights: str
    claim: str | None = None
    claim_format: str | None = None
    claim_hardware: str | None = None
    alpha: float = 0.01
    max_tokens: int | None = None
    max_cost: float | None = None
    price: float | None = None
    concurrency: int = 8
    order: int = 0
    candidates: str = "store,emulated"
    detector: Path | None = None
    params: str | Path = "params.yaml"

    def __post_init__(self) -> None:
        if self.claim_format and (self.claim or self.claim_hardware):
            raise ConfigError("claim-format must stand alone, but a claim of software or hardware is there too")
        Claim.parse(self.claim, self.claim_hardware)
        if self.max_cost is not None and self.price is None:
            raise ConfigError("max-cost must come with a price, but there is none")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"`0 < alpha < 1` must hold, but got {self.alpha}")

    @property
    def folder(self) -> Path:
        """Where the evidence goes, unless another folder is named."""
        plain = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.served).strip(".") or "model"
        claim = self.claim_format or str(Claim.parse(self.claim, self.claim_hardware) or "")
        return AUDITS / "-".join(filter(None, [plain, "".join(c if c.isalnum() or c in "._-" else "-" for c in claim)]))

    def budget(self, length: int) -> int:
        """Output tokens that probes of `length` tokens may take, what discovery needs set aside."""
        budget = self.max_tokens or 10**9
        if self.max_cost is not None and self.price is not None:
            budget = min(budget, int(self.max_cost * 1e6 / self.price / (length + 1)))
        if budget <= DISCOVERY_TOKENS:
            raise ConfigError(f"the budget must allow more than {DISCOVERY_TOKENS} tokens, but it allows {budget}")
        return int(budget - DISCOVERY_TOKENS)


@dataclass(frozen=True, slots=True)
class Audit:
    """What came of a request. folder: of the evidence; material: what was brought along; plan: what was to be asked;
    verdict: None where the plan alone was asked for."""

    folder: Path
    material: Material
    plan: Plan
    verdict: Verdict | None


class Supply(Protocol):
    """Where an audit's material comes from. refer: makes references of contexts that were never collected, or None;
    scores: a folder where candidates' scores on themselves are kept from audit to audit, or None."""

    refer: Refer | None
    scores: Path | None

    @property
    def settings(self) -> Settings: ...

    def material(self) -> Material: ...


class Project:
    """The project's own folders: params.yaml, the zoo, the registry's detector and the store of signatures."""

    scores: Path | None = KEPT / "scores"

    def __init__(self, request: Request, say: Say = silent) -> None:
        self.request, self.say = request, say
        self.params, self.ref = params.load(request.params), zoo.resolve(request.weights)
        self.refer: Refer | None = partial(residual.refer, self.ref, cache=KEPT / "references")

    @cached_property
    def settings(self) -> Settings:
        r = self.request
        return Settings(
            base_url=shown_url(r.base_url),
            served=r.served,
            model=candidates.known_as(self.ref),
            weights_hash=self.ref.weights_hash,
            claim=r.claim,
            alpha=r.alpha,
            budget=r.budget(self.params.probes.length),
            price=r.price,
            window=r.concurrency * 3 // 2 + 1,  # so that one slow answer leaves no slot idle
            candidates=list(candidates.parse_kinds(r.candidates)),
            seed=self.params.evaluation.seed,
            order=r.order,
            claim_format=r.claim_format,
            claim_hardware=r.claim_hardware,
        )

    def material(self) -> Material:
        detector, kinds = judging.load_detector(self.request.detector), self.settings.candidates
        full, _ = candidates.gather(
            detector,
            self.ref,
            kinds,
            self.params,
            STORE,
            KEPT / "signatures",
            self.say,
            claim=self.settings.claimed,
            params_file=str(self.request.params),
        )
        return material.prepare(self.settings, full, self.params.probes.specs(), self.ref)


def audit(
    base_url: str, served: str, weights: str, *, out: str | Path | None = None, say: Say = silent, **options: Any
) -> Verdict:
    """Hold an OpenAI-compatible endpoint against the claim of its provider. options: any more of `Request`.

    out: folder of the evidence, by default audits/SERVED-CLAIM; called again after a kill, the audit goes on there.
    say: is told the plan, line by line. Raises ConfigError where the request cannot be made as it is, EndpointError
    when a question stays unanswered; whatever was answered is kept.
    """
    request = Request(base_url=base_url, served=served, weights=weights, **options)
    found = start(request, None if out is None else Path(out), say=say).verdict
    assert found is not None, "not a dry run"
    return found


def start(
    request: Request,
    folder: Path | None = None,
    *,
    say: Say = silent,
    dry_run: bool = False,
    reach: bool = False,
    supply: Supply | None = None,
    endpoint: Endpoint | None = None,
) -> Audit:
    """Ask, judge, seal the evidence in `folder` (by default the request's own). Raises as `audit` does.

    say: is told the plan, line by line. dry_run: find out what the endpoint gives, make the plan, leave nothing behind.
    reach: raise OutOfReach where no answers would exclude anything at the request's alpha. supply and endpoint stand in
    for the project's folders and the request's URL.
    """
    supply = supply or Project(request, say)
    endpoint = endpoint or Endpoint(request.base_url, os.environ.get("OPENAI_API_KEY", ""), request.concurrency)
    settings = supply.settings

    async def run(where: Path) -> Audit:
        opened = open_folder(where, supply.material, settings)
        async with endpoint:
            return await _conduct(opened, endpoint, where, say, dry_run, reach, supply.scores, supply.refer)

    if not dry_run:
        return asyncio.run(run(folder or request.folder))
    with tempfile.TemporaryDirectory() as scratch:
        return asyncio.run(run(Path(scratch)))


def rescore(folder: Path, say: Say = silent) -> Audit:
    """Score a sealed folder again, offline: neither endpoint, weights nor registry are needed.

    Raises DataError if the folder is no sealed audit, a byte changed, or the verdict would be another: the line names
    both, and where only the evidence differs, in what.
    """
    check_seal(folder)
    material, sealed = load(folder), read_json(folder / "verdict.json")
    must = f"{folder} must score to its verdict again, {sealed.get('outcome')} ({sealed.get('answer')}), but "
    try:
        found = asyncio.run(_conduct(material, None, folder, say))
    except DataError as error:
        raise DataError(f"{must}with these versions it scores to none: {error}") from error
    verdict = found.verdict
    assert verdict is not None, "not a dry run"
    if differs := verdict.differs(sealed):
        now = f"{verdict.outcome} ({verdict.answer})"
        raise DataError(f"{must}with these versions it scores {now}, with another {', '.join(differs)}")
    return found


async def _conduct(
    material: Material,
    endpoint: Endpoint | None,
    folder: Path,
    say: Say,
    dry_run: bool = False,
    reach: bool = False,
    scores: Path | None = None,
    refer: Refer | None = None,
) -> Audit:
    """Without an endpoint the answers in `folder` must suffice."""
    with Records(folder, endpoint) as records:
        names, symbols = Names(material.vocabulary), Symbols(material.vocabulary, material.special)
        prompts = [(p.ids, p.text) for p in material.warm_up]
        cap = await discover(records.ask, material.settings.served, prompts, names, symbols.read)
        level = choose(cap, material)
        level.open(scores)
        plan = level.plan()
        for line in plan.lines():
            say(line)
        if dry_run:
            return Audit(folder, material, plan, None)
        if reach and plan.reach:
            plan.reach.check()
        level.prepare(plan, folder, refer)
        findings = await gather(level, plan, reader(cap, names, symbols), records.ask)
        found = level.conclude(plan, findings)
        if endpoint is not None and not is_sealed(folder):
            asked = sorted(name for name in records.rows if name.startswith("discover-"))
            records.finish([*asked, *findings.names])
            write_json(folder / "plan.json", plan.to_dict())
            write_json(folder / "verdict.json", found.to_dict())
            page.write(folder / "report.html", plan, found, material, level.limits)
            seal(folder)
    return Audit(folder, material, plan, found)
