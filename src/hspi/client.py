"""Talking to an OpenAI-compatible endpoint: one question, one answer, whatever happens in between.

The `openai` client builds and sends the requests; its own retries are off, because here a question has a name and its
answer counts once. Nothing that comes back is trusted: bodies are bounded before they are read, compressed ones are
refused, every request has a deadline, and the key is struck out of all text that leaves this module.

EndpointError           the endpoint did not answer as its protocol demands
├── Refused             it said no, and asking again would not help: wrong key, unknown route, a field it does not know
└── Invalid             it answered, each time with something that is no answer to the question
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler

from hspi.errors import ConfigError, EndpointError, MissingExtra

if TYPE_CHECKING:
    import httpx2 as httpx
    from openai import AsyncOpenAI

Route = Literal["completions", "chat/completions"]

MAX_BODY = 4 << 20
STRUCK_OUT = "[key]"
LOCKED_OUT = (401, 403)  # HTTP: it is refused for who asks
_AGAIN = {408, 409, 425, 429}


class Refused(EndpointError):
    """The endpoint refused for good. `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Invalid(EndpointError):
    """The last attempt brought an answer that the check refused."""


class _Unusable(Exception):
    """This attempt failed, another may not. `wait`: seconds that the server asked for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how long between: exponential with full jitter, or what Retry-After says, at most `longest`.

    `answers`: how many replies that are no answer to the question end it; they may have been paid for.
    """

    attempts: int = 8
    answers: int = 4
    first: float = 0.5
    longest: float = 30.0

    def pause(self, attempt: int, asked: float | None) -> float:
        if asked is not None:
            return min(max(asked, 0.0), self.longest)
        return random.uniform(0, min(self.longest, self.first * 2**attempt))


@dataclass(frozen=True, slots=True)
class Question:
    """`name` identifies it: a question that has an answer is not asked again."""

    name: str
    route: Route
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back with status 200: the text as it came (the key struck out) and the object in it."""

    name: str
    text: str
    data: dict[str, Any]


Check = Callable[[Reply], object]
"""Raises ValueError if a reply is no answer to the question; it is then asked again."""


@dataclass(slots=True)
class Endpoint:
    """One model behind one URL. Use it as an async context.

    `transport` and `sleep` are injected by tests; `deadline` is in seconds, for one attempt.
    """

    base_url: str
    key: str = field(default="", repr=False)
    concurrency: int = 8
    retry: Retry = field(default_factory=Retry)
    deadline: float = 60.0
    max_body: int = MAX_BODY
    transport: httpx.AsyncBaseTransport | None = None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _client: AsyncOpenAI | None = None
    _gate: asyncio.Semaphore | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base URL must be http(s)://HOST/…, but got {shown_url(self.base_url)!r}")
        if parts.username or parts.password:
            raise ConfigError("base URL must hold no user and password: give the key in OPENAI_API_KEY")
        if self.retry.attempts < 1 or self.concurrency < 1:
            raise ConfigError(
                f"`attempts >= 1` and `concurrency >= 1` must hold, but got {self.retry.attempts}, {self.concurrency}"
            )

    async def __aenter__(self) -> Endpoint:
        try:
            import httpx2 as httpx  # what `openai` speaks through
            from openai import AsyncOpenAI
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "openai", "audit") from error
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        inner = self.transport or httpx.AsyncHTTPTransport(limits=limits)
        http = httpx.AsyncClient(
            transport=_bounded(inner, self.max_body),
            timeout=httpx.Timeout(self.deadline),
            headers={"Accept-Encoding": "identity"},
            follow_redirects=False,  # a redirect would carry the key to a host that nobody named
        )
        self._client = AsyncOpenAI(
            base_url=self.base_url, api_key=self.key or "none", max_retries=0, timeout=self.deadline, http_client=http
        )
        self._gate = asyncio.Semaphore(self.concurrency)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.close()

    async def ask(self, question: Question, check: Check = lambda reply: None) -> Reply:
        """The one accepted reply. Raises Refused at once, EndpointError when every attempt failed."""
        assert self._client is not None and self._gate is not None, "use the endpoint as an async context"
        reason, kind, replies = "", EndpointError, 0
        for attempt in range(self.retry.attempts):
            wait = None
            try:
                async with self._gate, asyncio.timeout(self.deadline):
                    text = await self._once(question)
                reply = Reply(question.name, text, parse(text))
                check(reply)
                return reply
            except _Unusable as error:
                reason, wait, kind = str(error), error.wait, EndpointError
            except TimeoutError:
                reason, kind = f"no whole answer within {self.deadline:g} s", EndpointError
            except ValueError as error:
                reason, kind, replies = one_line(str(error)), Invalid, replies + 1
            if replies >= self.retry.answers:
                break
            if attempt + 1 < self.retry.attempts:
                await self.sleep(self.retry.pause(attempt, wait))
        raise kind(f"{question.name} must be answered within {attempt + 1} attempts, but: {self.strike(reason)}")

    async def _once(self, question: Question) -> str:
        """One attempt: the body of a 200, as text. Raises _Unusable or Refused."""
        import httpx2 as httpx
        import openai

        assert self._client is not None
        try:
            response = await self._client.post(f"/{question.route}", body=question.body, cast_to=httpx.Response)
        except openai.APIStatusError as error:
            raise self._status(error) from None
        except (openai.OpenAIError, httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            cause = error.__cause__ or error
            raise _Unusable(f"{type(cause).__name__}: {one_line(str(cause))}") from None
        return self.strike(response.content.decode("utf-8", "replace"))

    def _status(self, error: Any) -> Exception:
        said = self.strike(one_line(error.response.text[:2000]))
        message = f"HTTP {error.status_code}: {said}"
        if error.status_code in _AGAIN or error.status_code >= 500:
            return _Unusable(message, retry_after(error.response.headers.get("retry-after")))
        return Refused(f"{shown_url(self.base_url)} must accept the request, but: {message}", error.status_code)

    def strike(self, text: str) -> str:
        """The text without the key, also where JSON has escaped it."""
        if not self.key:
            return text
        forms = {self.key, json.dumps(self.key)[1:-1], self.key.replace("/", "\\/")}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, STRUCK_OUT)
        return text


def parse(text: str) -> dict[str, Any]:
    """The JSON object in a body. Raises ValueError if there is none, or a number in it is not one."""

    def no(name: str) -> Any:
        raise ValueError(f"numbers must be finite, but got {name}")

    try:
        data = json.loads(text, parse_constant=no)
    except RecursionError:
        raise ValueError("the answer must be JSON of sane depth, but it is not") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the answer must be JSON, but: {error.msg} at {error.pos}") from None
    if not isinstance(data, dict):
        raise ValueError(f"the answer must be a JSON object, but it is a {type(data).__name__}")
    return data


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date (RFC 9110, section 10.2.3); None if neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return seconds if 0 <= seconds < 1e9 else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def shown_url(url: str) -> str:
    """The URL without user, password, query and fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname or ''}{port}", parts.path, "", ""))


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."


class NoRedirects(HTTPRedirectHandler):
    """For urllib: a redirect would carry what is sent, a key or an alert, to a host that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _bounded(inner: httpx.AsyncBaseTransport, limit: int) -> httpx.AsyncBaseTransport:
    """The transport, with bodies that end in an error beyond `limit` bytes. Made late, for httpx is imported late."""
    import httpx2 as httpx

    class Stream(httpx.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.stream:
                size += len(part)
                if size > limit:
                    raise httpx.ReadError(f"an answer must hold at most {limit} bytes, but this one goes on")
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    class Bounded(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await inner.handle_async_request(request)
            encoding = response.headers.get("content-encoding", "identity")
            if encoding != "identity":  # it would unpack to any size
                await response.aclose()
                raise httpx.DecodingError(f"an answer must come as it is, but it came as {one_line(encoding)!r}")
            return httpx.Response(
                response.status_code,
                headers=response.headers,
                stream=Stream(response.stream),
                extensions=response.extensions,
            )

        async def aclose(self) -> None:
            await inner.aclose()

    return Bounded()
