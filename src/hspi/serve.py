"""`hspi serve`: any platform of the catalogue behind an OpenAI-compatible API.

Waiting sequences are grouped into one adapter call, up to `max_batch`, padded on the right: an answer shares its
arithmetic with whatever company it has, as on a real server. A sequence takes one step a token and queues again. The
fields are those of OpenAI's completions and chat completions, and vLLM's `return_tokens_as_token_ids`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError, DataError, MissingExtra
from hspi.platforms.environments import ENVIRONMENTS
from hspi.platforms.record import Adapter, LogProbs, Platform

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_LOGPROBS = 100
MAX_TOKENS = 4096
MAX_BODY = 8 << 20


class BadRequest(ValueError):
    """What the client asked cannot be done; the message goes back with status 400."""


@dataclass(slots=True)
class _Step:
    context: npt.NDArray[np.int64]
    positions: int
    done: asyncio.Future[LogProbs]


@dataclass(slots=True)
class Batcher:
    """Groups waiting steps into adapter calls. Steps of one call ask for the same number of positions."""

    adapter: Adapter
    max_batch: int = 8
    served: list[int] = field(default_factory=list)  # sizes of the batches so far
    _waiting: deque[_Step] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def logprobs(self, context: npt.NDArray[np.int64], positions: int) -> LogProbs:
        """Float32 (positions, vocabulary), when its turn has come. Raises what the adapter raises."""
        step = _Step(context, positions, asyncio.get_running_loop().create_future())
        self._waiting.append(step)
        self._wake.set()
        return await step.done

    async def run(self) -> None:
        """Serve until cancelled. One call at a time, off the event loop."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as engine:
            while True:
                await self._wake.wait()
                await asyncio.sleep(0.001)  # lets requests that arrive together share a batch
                group = self._take()
                try:
                    found = await loop.run_in_executor(engine, self._serve, group)
                    for step, row in zip(group, found, strict=True):
                        if not step.done.done():
                            step.done.set_result(row)
                except Exception as error:  # one bad batch must not end the server
                    for step in group:
                        if not step.done.done():
                            step.done.set_exception(error)

    def _take(self) -> list[_Step]:
        positions = self._waiting[0].positions
        group = [s for s in self._waiting if s.positions == positions][: self.max_batch]
        chosen = set(map(id, group))
        self._waiting = deque(s for s in self._waiting if id(s) not in chosen)
        if not self._waiting:
            self._wake.clear()
        return group

    def _serve(self, group: list[_Step]) -> LogProbs:
        self.served.append(len(group))
        return self.adapter.logprobs([s.context for s in group], group[0].positions)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One completion that was asked for, validated."""

    prompt: npt.NDArray[np.int64]
    max_tokens: int
    top: int | None
    echo: bool
    temperature: float
    seed: int | None
    as_ids: bool


@dataclass(frozen=True, slots=True)
class Written:
    """tokens: ids that were written. rows: for each token of the answer (prompt first where echoed) its id and the
    log-probabilities it was drawn from, None for a prompt's first token."""

    tokens: list[int]
    rows: list[tuple[int, LogProbs | None]]
    stopped: bool


class Vocabulary:
    """Text of tokens, both ways."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self.size = tokenizer, size
        self.stop: int | None = getattr(tokenizer, "eos_token_id", None)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))

    def name(self, token: int, as_ids: bool) -> str:
        return f"token_id:{token}" if as_ids else self.text([token])


async def write(want: Wanted, batcher: Batcher, stop: int | None) -> Written:
    """Token after token, each from its own turn in the queue."""
    context = want.prompt
    tokens: list[int] = []
    rows: list[tuple[int, LogProbs | None]] = []
    if want.echo:
        before = await batcher.logprobs(context, len(context))
        rows = [(int(context[0]), None), *((int(t), before[i]) for i, t in enumerate(context[1:]))]
    rng = np.random.default_rng(want.seed)
    while len(tokens) < want.max_tokens:
        row = (await batcher.logprobs(context, 1))[0]
        token = choose(row, want.temperature, rng)
        tokens.append(token)
        rows.append((token, row))
        if token == stop:
            return Written(tokens, rows, True)
        context = np.append(context, token)
    return Written(tokens, rows, False)


def choose(row: npt.NDArray[np.float32], temperature: float, rng: np.random.Generator) -> int:
    """The likeliest token, the lowest id first, or one drawn at `temperature` (Gumbel's maximum)."""
    if temperature == 0:
        return int(row.argmax())
    return int((row / temperature + rng.gumbel(size=row.shape)).argmax())


def best(row: LogProbs, k: int) -> list[tuple[int, float]]:
    """The k likeliest tokens with exact float32 values as doubles."""
    from hspi.signatures.top_k import top_k

    ids, values = top_k(row[None], k)
    return [(int(i), float(v)) for i, v in zip(ids[0], values[0], strict=True)]


# ---------------------------------------------------------------- what comes in


def _number(body: dict[str, Any], name: str, default: Any, low: float, high: float, kind: type = int) -> Any:
    value = body.get(name)
    if value is None:
        return default
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fits or kind(value) != value:
        raise BadRequest(f"{name} must be a number in {low:g}..{high:g}, but got {str(value)[:40]!r}")
    return kind(value)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name) or False
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false, but got {str(value)[:40]!r}")
    return value


def _prompts(prompt: Any, vocabulary: Vocabulary) -> list[list[int]]:
    if isinstance(prompt, str):
        return [vocabulary.encode(prompt)]
    if isinstance(prompt, list) and prompt and all(type(t) is int for t in prompt):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(p, (str, list)) and p for p in prompt):
        return [ids for p in prompt for ids in _prompts(p, vocabulary)]
    raise BadRequest("prompt must be a string, a list of token ids, or a list of those")


def _want(ids: list[int], body: dict[str, Any], top: int | None, vocabulary: Vocabulary, limit: int) -> Wanted:
    if not ids:
        raise BadRequest("prompt must hold a token, but it is empty")
    if not all(0 <= t < vocabulary.size for t in ids):
        raise BadRequest(f"token ids must lie in 0..{vocabulary.size - 1}")
    tokens = _number(body, "max_tokens", 16, 0, MAX_TOKENS)
    if len(ids) + tokens > limit:
        raise BadRequest(f"prompt and answer must fit in {limit} tokens, but got {len(ids)} + {tokens}")
    if _number(body, "n", 1, 1, 1) != 1:
        raise BadRequest("n must be 1")
    return Wanted(
        np.asarray(ids, np.int64),
        tokens,
        top,
        _flag(body, "echo"),
        float(_number(body, "temperature", 0.0, 0, 100, float)),
        _number(body, "seed", None, 0, 2**63),
        _flag(body, "return_tokens_as_token_ids"),
    )


# ---------------------------------------------------------------- what goes out


def completion_logprobs(written: Written, want: Wanted, vocabulary: Vocabulary) -> dict[str, Any]:
    """The `logprobs` of a completion: parallel lists, a mapping of alternatives for each token."""
    tokens: list[str] = []
    own: list[float | None] = []
    alternatives: list[dict[str, float] | None] = []
    offsets: list[int] = []
    at = 0
    for token, row in written.rows:
        name = vocabulary.name(token, want.as_ids)
        tokens.append(name)
        own.append(None if row is None else float(row[token]))
        offsets.append(at)
        at += len(vocabulary.text([token]))
        if row is None or not want.top:
            alternatives.append(None)
            continue
        found = {name: float(row[token])}
        for i, value in best(row, want.top):
            found.setdefault(vocabulary.name(i, want.as_ids), value)
        alternatives.append(found)
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": alternatives, "text_offset": offsets}


def chat_logprobs(written: Written, want: Wanted, vocabulary: Vocabulary) -> dict[str, Any]:
    """The `logprobs` of a chat completion: a record for each token, with a list of alternatives."""

    def entry(token: int, value: float) -> dict[str, Any]:
        data = vocabulary.text([token]).encode()
        return {"token": vocabulary.name(token, want.as_ids), "logprob": value, "bytes": list(data)}

    content = []
    for token, row in written.rows:
        assert row is not None, "a chat answer never echoes"
        top = [entry(i, v) for i, v in best(row, want.top)] if want.top else []
        content.append({**entry(token, float(row[token])), "top_logprobs": top})
    return {"content": content}


def _envelope(kind: str, model: str, body: bytes, choices: list[Any], prompt: int, written: int) -> dict[str, Any]:
    digest = hashlib.sha256(body).hexdigest()[:24]
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {"id": f"cmpl-{digest}", "object": kind, "model": model, "choices": choices, "usage": usage}


# ---------------------------------------------------------------- the application


@dataclass(slots=True)
class Server:
    """The routes over one adapter. `limit` bounds prompt and answer together, in tokens."""

    batcher: Batcher
    vocabulary: Vocabulary
    model: str
    limit: int = 2048
    started: int = field(default_factory=lambda: int(time.time()))

    async def completions(self, raw: bytes, body: dict[str, Any]) -> dict[str, Any]:
        top = _number(body, "logprobs", None, 0, MAX_LOGPROBS)
        prompts = _prompts(body.get("prompt"), self.vocabulary)
        wants = [_want(p, body, top, self.vocabulary, self.limit) for p in prompts]
        found = await asyncio.gather(*(write(w, self.batcher, self.vocabulary.stop) for w in wants))
        choices = [self._completion(i, w, r) for i, (w, r) in enumerate(zip(wants, found, strict=True))]
        written = sum(len(r.tokens) for r in found)
        return _envelope("text_completion", self.model, raw, choices, sum(map(len, prompts)), written)

    def _completion(self, index: int, want: Wanted, written: Written) -> dict[str, Any]:
        shown = [t for t, _ in written.rows]
        logprobs = None if want.top is None else completion_logprobs(written, want, self.vocabulary)
        reason = "stop" if written.stopped else "length"
        return {"index": index, "text": self.vocabulary.text(shown), "logprobs": logprobs, "finish_reason": reason}

    async def chat(self, raw: bytes, body: dict[str, Any]) -> dict[str, Any]:
        """The template is the plainest there is: the messages' contents, one after another, nothing between."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list that is not empty")
        if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
            raise BadRequest("each message must hold its content as a string")
        top = _number(body, "top_logprobs", 0, 0, MAX_LOGPROBS)
        ids = self.vocabulary.encode("".join(m["content"] for m in messages))
        want = _want(ids, {**body, "echo": False}, top, self.vocabulary, self.limit)
        written = await write(want, self.batcher, self.vocabulary.stop)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.vocabulary.text(written.tokens)},
            "logprobs": chat_logprobs(written, want, self.vocabulary) if _flag(body, "logprobs") else None,
            "finish_reason": "stop" if written.stopped else "length",
        }
        return _envelope("chat.completion", self.model, raw, [choice], len(ids), len(written.tokens))

    async def answer(self, request: Request, verb: Callable[[bytes, dict[str, Any]], Awaitable[Any]]) -> Response:
        from starlette.responses import JSONResponse

        try:
            raw, body = await _read(request)
            if body.get("model") not in (None, self.model):
                return _refusal(f"the model {str(body['model'])[:80]!r} does not exist; this is {self.model!r}", 404)
            found = await verb(raw, body)
        except (BadRequest, DataError) as error:
            return _refusal(str(error), 400)
        return JSONResponse({"created": self.started, **found})

    def app(self) -> Starlette:
        from contextlib import asynccontextmanager

        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        async def completions(request: Request) -> Response:
            return await self.answer(request, self.completions)

        async def chat(request: Request) -> Response:
            return await self.answer(request, self.chat)

        async def models(request: Request) -> Response:
            card = {"id": self.model, "object": "model", "created": self.started, "owned_by": "hspi"}
            return JSONResponse({"object": "list", "data": [card]})

        async def health(request: Request) -> Response:
            return JSONResponse({"status": "ok", "batches": len(self.batcher.served)})

        @asynccontextmanager
        async def lifespan(app: Starlette):  # type: ignore[no-untyped-def]
            worker = asyncio.create_task(self.batcher.run())
            yield
            worker.cancel()

        routes = [
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ]
        return Starlette(routes=routes, lifespan=lifespan)


async def _read(request: Request) -> tuple[bytes, dict[str, Any]]:
    import json

    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise BadRequest(f"a request must hold at most {MAX_BODY} bytes")
        parts.append(part)
    raw = b"".join(parts)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body must be JSON") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return raw, body


def _refusal(message: str, status: int) -> Response:
    from starlette.responses import JSONResponse

    error = {"message": message, "type": "invalid_request_error", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


def serve(
    platform_id: str,
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 8,
    name: str | None = None,
) -> None:
    """Load `model` on a platform of the catalogue and serve it until interrupted.

    A platform whose engine is a server (vLLM, llama.cpp) is served by that one itself: it takes this process's place.
    Must be called before the engine is imported: the platform's environment is set first. Raises UnknownName,
    PlatformError, ModelError, and MissingExtra where the web server is not installed.
    """
    from hspi.platforms import catalogue, machine

    platform = catalogue.get(platform_id)
    if max_batch < 1:
        raise ConfigError(f"`max_batch >= 1` must hold, but got {max_batch}")
    if platform.engine in ENVIRONMENTS:
        _become(platform, model, host, port, max_batch, name or model)
    machine.apply_env(platform)
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise MissingExtra("uvicorn", "audit") from error
    from hspi import zoo
    from hspi.platforms.opening import open_adapter

    ref = zoo.resolve(model)
    vocabulary = Vocabulary(zoo.load_tokenizer(ref), ref.vocab_size)
    adapter = open_adapter(platform, ref.path)
    server = Server(Batcher(adapter, max_batch), vocabulary, name or model)
    uvicorn.run(server.app(), host=host, port=port, log_level="warning", access_log=False)


def _become(platform: Platform, model: str, host: str, port: int, slots: int, name: str) -> NoReturn:
    """Turn this process into the platform's own server."""
    from hspi import zoo
    from hspi.platforms import servers

    what = servers.launch(platform, zoo.resolve(model).path, host=host, port=port, name=name, slots=slots)
    os.execve(what.command[0], what.command, what.environment)
