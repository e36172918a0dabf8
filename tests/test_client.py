"""The client against a server that misbehaves byte by byte: every question ends in one answer or one error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import pytest

import audit_world as world
from hspi.client import Endpoint, Invalid, Question, Refused, Reply, Retry, parse, retry_after, shown_url
from hspi.errors import ConfigError, EndpointError
from misbehaving import MOMENTARY, Misbehaving, serving

KEY = "sk-very/secret+key"
QUICK = Retry(attempts=12, answers=12, first=0.001, longest=0.01)


def question(i: int, **more: Any) -> Question:
    body = {"model": "toy", "prompt": world.contexts()[i].tolist(), "max_tokens": 1, "logprobs": 5, **more}
    return Question(f"q{i}", "completions", body)


def talk(server: Misbehaving, work: Callable[[Endpoint], Awaitable[Any]], **more: Any) -> Any:
    options = {"retry": QUICK, "deadline": 60.0, "concurrency": 8, "max_body": 1 << 20, **more}

    async def inside() -> Any:
        async with Endpoint(server.url, KEY, **options) as endpoint:
            return await work(endpoint)

    return asyncio.run(inside())


def has_five(reply: Reply) -> None:
    found = reply.data["choices"][0]["logprobs"]
    if found is None or len(found["top_logprobs"][0]) != 5:
        raise ValueError("five must come")


@pytest.mark.parametrize("fault", ["429", "429-after", "500", "reset", "reset-midway", "truncated", "not-json", "deep"])
def test_a_fault_that_passes_is_waited_out(fault: str) -> None:
    with serving(Misbehaving(faults=(fault,), rate=0.5)) as server:

        async def work(endpoint: Endpoint) -> list[Reply]:
            return await asyncio.gather(*(endpoint.ask(question(i), has_five) for i in range(12)))

        replies = talk(server, work)
        assert server.done[fault] > 0
    assert [r.name for r in replies] == [f"q{i}" for i in range(12)]


def test_an_endless_answer_is_cut_off_early() -> None:
    with serving(Misbehaving(faults=("endless", "gzip-bomb"), rate=1.0)) as server:
        before = time.monotonic()
        with pytest.raises(EndpointError, match=r"at most|as it is"):
            talk(server, lambda e: e.ask(question(0)), retry=Retry(3, 3, 0.001, 0.01))
        assert time.monotonic() - before < 30, "by its size, long before the deadline and the gigabyte"


def test_a_stalled_answer_ends_at_the_deadline() -> None:
    with serving(Misbehaving(faults=("stall",), rate=1.0)) as server:
        before = time.monotonic()
        with pytest.raises(EndpointError, match=r"no whole answer|Timeout"):
            talk(server, lambda e: e.ask(question(0)), retry=Retry(2, 2, 0.001, 0.01), deadline=0.3)
        assert time.monotonic() - before < 3


def test_a_refusal_is_not_asked_again() -> None:
    with serving(Misbehaving(lasting="only-1")) as server:
        with pytest.raises(Refused, match="400") as caught:
            talk(server, lambda e: e.ask(question(0)))
        assert caught.value.status == 400 and server.asked.total() == 1


def test_replies_that_never_satisfy_end_as_invalid() -> None:
    with serving(Misbehaving()) as server:

        def never(reply: Reply) -> None:
            raise ValueError("not what was asked")

        with pytest.raises(Invalid, match="not what was asked"):
            talk(server, lambda e: e.ask(question(0), never), retry=Retry(8, 3, 0.001, 0.01))
        assert server.asked.total() == 3


def test_the_key_is_struck_out_of_answers_and_errors() -> None:
    with serving(Misbehaving(faults=("echo-key",), rate=1.0)) as server:
        with pytest.raises(EndpointError) as caught:
            talk(server, lambda e: e.ask(question(0)), retry=Retry(2, 2, 0.001, 0.01))
        assert server.keys == {KEY}
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in str(chain) and KEY not in repr(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert KEY not in repr(Endpoint("http://h/v1", KEY))


def test_the_wait_that_the_server_asks_for_is_kept() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with serving(Misbehaving(faults=("429-after",), rate=1.0)) as server, pytest.raises(EndpointError, match="429"):
        talk(server, lambda e: e.ask(question(0)), retry=Retry(3, 3, 5.0, 30.0), sleep=sleep)
    assert waits == [0.01, 0.01]


def test_pauses_grow_and_are_bounded() -> None:
    retry = Retry(first=1.0, longest=4.0)
    assert all(retry.pause(n, None) <= min(4.0, 2**n) for n in range(10) for _ in range(20))
    assert retry.pause(0, 100.0) == 4.0 and retry.pause(0, -1) == 0.0


@pytest.mark.parametrize(("ahead", "low", "high"), [(600, 590, 601), (-60, 0, 0)])
def test_retry_after_is_seconds_or_a_date(ahead: float, low: float, high: float) -> None:
    found = retry_after(formatdate(time.time() + ahead, usegmt=True))
    assert found is not None and low <= found <= high
    assert retry_after("3") == 3


@pytest.mark.parametrize("value", [None, "", "soon", "-1", "nan", "inf"])
def test_a_retry_after_that_makes_no_sense_is_none(value: str | None) -> None:
    assert retry_after(value) is None


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "h:80/v1", "http://user:pass@h/v1"])
def test_a_base_url_must_be_plain_http(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint(url)
    assert "pass@" not in str(caught.value)


def test_shown_url_holds_no_secret() -> None:
    assert shown_url("https://u:p@h:1/v1?key=x#y") == "https://h:1/v1"


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse(text)


def test_every_momentary_fault_is_known_to_the_server() -> None:
    with serving(Misbehaving(faults=MOMENTARY, rate=1.0)) as server:

        async def work(endpoint: Endpoint) -> list[Any]:
            asked = (endpoint.ask(question(i % 60, seed=i), has_five) for i in range(200))
            return await asyncio.gather(*asked, return_exceptions=True)

        found = talk(server, work, retry=Retry(1, 1, 0.001, 0.01), deadline=0.3, concurrency=32)
        assert set(server.done) == set(MOMENTARY)
    assert all(isinstance(f, Reply | EndpointError) for f in found)
