"""The server over one adapter: its routes, how an answer is written token by token, and how it is started.

Waiting sequences are grouped into one adapter call, up to `max_batch`, padded on the right: an answer shares its
arithmetic with whatever company it has, as on a real server. A sequence takes one step a token and queues again. The
fields are those of OpenAI's completions and chat completions, and vLLM's `return_tokens_as_token_ids`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from hspi.errors import ConfigError, DataError, MissingExtra
from hspi.platforms.record import LogProbs, Platform
from hspi.platforms.servers.environments import ENVIRONMENTS
from hspi.serve.batching import Batcher
from hspi.serve.wire import (
    MAX_LOGPROBS,
    BadRequest,
    Vocabulary,
    Wanted,
    Written,
    chat_logprobs,
    completion_logprobs,
    envelope,
    read_flag,
    read_number,
    read_prompts,
    read_want,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY = 8 << 20


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


@dataclass(slots=True)
class Server:
    """The routes over one adapter. `limit` bounds prompt and answer together, in tokens."""

    batcher: Batcher
    vocabulary: Vocabulary
    model: str
    limit: int = 2048
    started: int = field(default_factory=lambda: int(time.time()))

    async def completions(self, raw: bytes, body: dict[str, Any]) -> dict[str, Any]:
        top = read_number(body, "logprobs", None, 0, MAX_LOGPROBS)
        prompts = read_prompts(body.get("prompt"), self.vocabulary)
        wants = [read_want(p, body, top, self.vocabulary, self.limit) for p in prompts]
        found = await asyncio.gather(*(write(w, self.batcher, self.vocabulary.stop) for w in wants))
        choices = [self._completion(i, w, r) for i, (w, r) in enumerate(zip(wants, found, strict=True))]
        written = sum(len(r.tokens) for r in found)
        return envelope("text_completion", self.model, raw, choices, sum(map(len, prompts)), written)

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
        top = read_number(body, "top_logprobs", 0, 0, MAX_LOGPROBS)
        ids = self.vocabulary.encode("".join(m["content"] for m in messages))
        want = read_want(ids, {**body, "echo": False}, top, self.vocabulary, self.limit)
        written = await write(want, self.batcher, self.vocabulary.stop)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.vocabulary.text(written.tokens)},
            "logprobs": chat_logprobs(written, want, self.vocabulary) if read_flag(body, "logprobs") else None,
            "finish_reason": "stop" if written.stopped else "length",
        }
        return envelope("chat.completion", self.model, raw, [choice], len(ids), len(written.tokens))

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
    from hspi.platforms.servers.launch import launch

    what = launch(platform, zoo.resolve(model).path, host=host, port=port, name=name, slots=slots)
    os.execve(what.command[0], what.command, what.environment)
