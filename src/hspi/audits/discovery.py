"""What an endpoint gives, found by asking: a handful of questions of one token each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hspi.audits.answers import Answer, Names, decimals, read_answer, read_text
from hspi.client import LOCKED_OUT, Invalid, Question, Refused, Reply, Route
from hspi.errors import EndpointError

DISCOVERY_TOKENS = 4  # output tokens that finding out what an endpoint gives may take
LADDER = (20, 5, 2)  # how many alternatives to ask for, the most first

Ask = Callable[[Question, Callable[[Reply], object]], Awaitable[Reply]]
"""Question and check → the accepted reply; raises Refused, Invalid or EndpointError as `Endpoint.ask` does."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a question is put."""

    route: Route
    ids: bool  # the prompt as token ids, not text
    named_by_id: bool  # alternatives named by id, where the server knows vLLM's switch
    top: int  # alternatives asked for; 0: text alone

    def body(self, model: str, context: Sequence[int], text: str) -> dict[str, Any]:
        """One token, greedy, with log-probabilities."""
        body: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0}
        if self.named_by_id:
            body["return_tokens_as_token_ids"] = True
        if self.route == "completions":
            shown = {"logprobs": self.top} if self.top else {}
            return {**body, "prompt": list(context) if self.ids else text, **shown}
        shown = {"logprobs": True, "top_logprobs": self.top} if self.top else {}
        return {**body, "messages": [{"role": "user", "content": text}], **shown}


_WAYS: tuple[tuple[Route, bool, bool], ...] = (
    ("completions", True, True),
    ("completions", True, False),
    ("completions", False, True),
    ("completions", False, False),
    ("chat/completions", False, True),
    ("chat/completions", False, False),
)
TEXT_FORMS = tuple(Form(route, ids, False, 0) for route, ids, named in _WAYS if not named)
REPEATS = 6  # of each of two questions: at temperature 1, with a third on the likeliest token, one in a million agrees
FORMS = tuple(Form(route, ids, named, top) for route, ids, named in _WAYS for top in LADDER)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What was found. `form` is None where neither log-probabilities nor text come.

    top_k: alternatives that really come. echo: log-probabilities of the prompt can be had (not used as evidence).
    extra_tokens: tokens that the endpoint put around the prompt (a template, a start token), None if it does not say.
    """

    form: Form | None
    top_k: int = 0
    echo: bool = False
    greedy: bool = False
    repeatable: bool = False
    decimals: int | None = None
    extra_tokens: int | None = None
    foreign: int = 0
    tokens: int = DISCOVERY_TOKENS  # what finding out took
    remarks: list[str] = field(default_factory=list)


Prompt = tuple[Sequence[int], str]


async def discover(
    ask: Ask, model: str, prompts: Sequence[Prompt], names: Names, symbol: Callable[[Any], int]
) -> Capabilities:
    """prompts: two contexts, as ids and as text; symbol: an answered text → its id, where no log-probabilities come.

    Raises EndpointError if the endpoint answers nothing at all.
    """
    form, first, why = await _first_form(ask, model, prompts[0], names)
    if form is None or first is None:
        return await _discover_text(ask, model, prompts, symbol, why)
    again = await _try(ask, "discover-repeat", form, form.body(model, *prompts[0]), names)
    other = await _try(ask, "discover-other", form, form.body(model, *prompts[1]), names)
    seen = [a for a in (first, again, other) if isinstance(a, Answer)]
    values = [float(v) for a in seen for v in a.logprobs]
    told = first.prompt_tokens
    return Capabilities(
        form,
        top_k=min(form.top, *(len(a.ids) for a in seen)),
        echo=await _echoes(ask, model, prompts[0], form),
        greedy=all(a.token == a.ids[0] for a in seen),
        repeatable=isinstance(again, Answer) and _same(first, again),
        decimals=decimals(values),
        extra_tokens=None if told is None else told - len(prompts[0][0]),
        foreign=sum(a.foreign for a in seen),
        remarks=[str(a) for a in (again, other) if not isinstance(a, Answer)],
    )


async def _discover_text(
    ask: Ask, model: str, prompts: Sequence[Prompt], symbol: Callable[[Any], int], why: str
) -> Capabilities:
    """Whether greedy tokens come: the same questions again and again, for a server that draws must show."""

    def read(reply: Reply) -> Answer:
        return read_text(reply.data, symbol)

    async def answer(name: str, form: Form, prompt: Prompt) -> Answer | Exception:
        try:
            return read(await ask(Question(name, form.route, form.body(model, *prompt)), read))
        except (Refused, Invalid) as error:
            return error

    for number, form in enumerate(TEXT_FORMS):
        first = await answer(f"discover-text-{number}", form, prompts[0])
        if isinstance(first, Answer):
            break
    else:
        return Capabilities(None, remarks=[why, str(first)])
    rounds = [[await answer(f"discover-text-{i}-{j}", form, p) for j in range(REPEATS)] for i, p in enumerate(prompts)]
    told = [[a.token if isinstance(a, Answer) else None for a in some] for some in rounds]
    same = all(len(set(some)) == 1 and some[0] is not None for some in told)
    extra = None if first.prompt_tokens is None else first.prompt_tokens - len(prompts[0][0])
    used = 1 + len(prompts) * REPEATS
    return Capabilities(form, top_k=1, greedy=same, repeatable=same, extra_tokens=extra, tokens=used, remarks=[why])


async def _first_form(ask: Ask, model: str, prompt: Prompt, names: Names) -> tuple[Form | None, Answer | None, str]:
    missing: set[str] = set()
    silent: set[tuple[str, bool, bool]] = set()  # asking these for fewer alternatives would not help
    why = ""
    for number, form in enumerate(FORMS):
        way = (form.route, form.ids, form.named_by_id)
        if form.route in missing or way in silent:
            continue
        found = await _try(ask, f"discover-form-{number:02d}", form, form.body(model, *prompt), names)
        if isinstance(found, Answer):
            return form, found, ""
        why = str(found)
        if isinstance(found, Invalid):
            silent.add(way)
        if isinstance(found, Refused) and found.status in LOCKED_OUT:
            raise found
        if isinstance(found, Refused) and found.status in (404, 405, 501):
            missing.add(form.route)
    if len(missing) == 2:
        raise EndpointError(f"the endpoint must serve completions or chat completions, but: {why}")
    return None, None, why


async def _try(ask: Ask, name: str, form: Form, body: dict[str, Any], names: Names) -> Answer | Exception:
    def check(reply: Reply) -> object:
        return read_answer(reply.data, names, 2)

    try:
        return read_answer((await ask(Question(name, form.route, body), check)).data, names, 2)
    except (Refused, Invalid) as error:
        return error


async def _echoes(ask: Ask, model: str, prompt: Prompt, form: Form) -> bool:
    if form.route != "completions":
        return False
    question = Question("discover-echo", form.route, {**form.body(model, *prompt), "echo": True})
    try:
        data = (await ask(question, lambda reply: None)).data
        own = data["choices"][0]["logprobs"]["token_logprobs"]
        return sum(isinstance(v, float) for v in own[1:]) >= len(prompt[0]) - 1
    except (Refused, Invalid, KeyError, IndexError, TypeError):
        return False


def _same(a: Answer, b: Answer) -> bool:
    return a.ids.tobytes() == b.ids.tobytes() and a.logprobs.tobytes() == b.logprobs.tobytes()
