"""A server that answers for a platform of `audit_world`, and misbehaves on a seeded schedule.

Plain asyncio, byte by byte, so that it can do what no web framework would. Every fault is drawn from the seed, the
question and how often it was asked, so that a run can be repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time
from typing import Any

import audit_world as world
from hspi.signatures.top_k import top_k

MOMENTARY = (  # go away when the question is asked again
    "429", "429-after", "429-date", "500", "503-html", "reset", "reset-midway", "stall", "truncated", "not-json",
    "not-object", "empty", "endless", "deep", "gzip-bomb", "echo-key", "no-logprobs", "nan", "infinite", "string",
    "missing", "duplicate", "positive", "fewer", "two-choices", "two-tokens", "too-much-probability",
)  # fmt: skip
LASTING = (  # hold for the whole audit
    "always-500", "always-nan", "rounded-2", "rounded-4", "foreign-tokens", "no-logprobs-ever", "switch", "mixture",
    "only-5", "only-1", "unsorted", "html-text", "chat-only", "chat-template", "text-prompts", "wrong-model",
    "floored-2", "truncated-3", "text-chat", "draws", "batches", "unseen-class",
)  # fmt: skip
NO_ANSWER = ("refused", "not-json", "not-object", "empty", "two-choices")
NO_NUMBERS = ("no-logprobs", "nan", "infinite", "string", "missing", "positive", "fewer", "too-much-probability")

ROUNDED = {"rounded": round, "floored": math.floor, "truncated": math.trunc}


@dataclass
class Misbehaving:
    """platform answers; `faults` are drawn for a share `rate` of requests, or hold at every attempt at a share `spoilt`
    of the probes; `lasting` holds always.
    """

    platform: str = "bf16"  # software of the small world, or a full id of `audit_world.EVERYONE`
    faults: tuple[str, ...] = ()
    rate: float = 0.3
    seed: int = 0
    lasting: str = ""
    setting: int = 17  # a batch: of an unsteady platform one that no signature has, of a steady one of its second class
    unrest: float = 0.45  # of an unseen batch class: how far it moves the platform, as a share of its residual
    delay: float = 0.0
    switch_at: int = 12
    other: str = "fp32"
    port: int = 0
    done: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    probes: dict[str, int] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    spoilt: float | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    # ------------------------------------------------------------ HTTP

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                self.keys.add(headers.get("authorization", "").removeprefix("Bearer "))
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self.serve(lines[0].split()[1], body, headers, writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # the client hung up, or the server ends
        finally:
            writer.close()

    async def serve(self, path: str, body: bytes, headers: dict[str, str], writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection is spent."""
        name = hashlib.sha256(body).hexdigest()
        self.asked[name] += 1
        rng, rate = random.Random(f"{self.seed} {name} {self.asked[name]}"), self.rate
        if self.spoilt is not None:
            at = world.find(prompt_of(json.loads(body)))
            rng, rate = random.Random(f"{self.seed} {at}"), 0.0 if at in world.warm_up() else self.spoilt
        fault = rng.choice(self.faults) if self.faults and rng.random() < rate else ""
        if fault:
            self.done[fault] += 1
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.lasting == "always-500":
            fault = "500"
        if self.lasting == "locked" and headers.get("authorization") != "Bearer right":
            fault = "locked-out"
        status, data = self.answer(path, json.loads(body or b"{}"), fault)
        return await self.deliver(fault, status, data, headers, writer)

    async def deliver(
        self, fault: str, status: int, data: Any, headers: dict[str, str], writer: asyncio.StreamWriter
    ) -> bool:
        text = json.dumps(data).encode()
        extra = b""
        if fault.startswith("429"):
            status = 429
            after = {"429-after": "0.01", "429-date": formatdate(time() - 5, usegmt=True)}.get(fault)
            extra = f"Retry-After: {after}\r\n".encode() if after else b""
        elif fault == "500":
            status = 500
        elif fault in ("refused", "locked-out"):
            status = 400 if fault == "refused" else 401
        elif fault == "503-html":
            status, text = 503, b"<html><script>alert(1)</script>busy</html>"
        elif fault == "echo-key":
            status, text = 500, json.dumps({"error": f"bad key {headers.get('authorization')}"}).encode()
        elif fault == "not-json":
            text = b"<script>alert('not json')</script>"
        elif fault == "not-object":
            text = b"[1, 2]"
        elif fault == "empty":
            text = b""
        elif fault == "deep":
            text = b"[" * 200_000
        elif fault == "gzip-bomb":
            extra = b"Content-Encoding: gzip\r\n"
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "stall":
            await asyncio.sleep(1.5)
            return False
        length = len(text)
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n".encode() + extra
        if fault == "endless":
            return await self._endless(head, writer)
        if fault == "truncated":
            text, length = text[: length // 2], length // 2
        writer.write(head + f"Content-Length: {length}\r\n\r\n".encode())
        if fault == "reset-midway":
            writer.write(text[: length // 2])
            await writer.drain()
            writer.transport.abort()
            return False
        writer.write(text)
        await writer.drain()
        return True

    async def _endless(self, head: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
        block = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(10**9 // 0x10000):  # a gigabyte, if it is let
            writer.write(block)
            await writer.drain()
        return False

    # ------------------------------------------------------------ answers

    def answer(self, path: str, body: dict[str, Any], fault: str) -> tuple[int, Any]:
        chat = path.endswith("chat/completions")
        only_chat = self.lasting.startswith("chat") or self.lasting == "text-chat"
        if not (path.endswith("completions") and (chat or not only_chat)):
            return 404, {"error": {"message": "no such route"}}
        if self.lasting == "text-prompts" and not isinstance(body.get("prompt", ""), str):
            return 400, {"error": {"message": "prompt must be text"}}
        prompt = prompt_of(body)
        k = body.get("top_logprobs" if chat else "logprobs") or 0
        if k > {"only-5": 5, "only-1": 1}.get(self.lasting, 100):
            return 400, {"error": {"message": "too many logprobs"}}
        pairs = self.pairs(world.find(prompt), max(k, 3))
        written = self.draw(pairs) if self.lasting == "draws" else pairs[0][0]
        pairs = pairs[:k] if k else []
        pairs = self.spoil(pairs, fault)
        foreign = "foreign-tokens" in (self.lasting, fault)
        by_id = bool(body.get("return_tokens_as_token_ids"))
        named = [(f"▁{t}" if foreign else f"token_id:{t}" if by_id else world.text_of([t]), v) for t, v in pairs]
        if fault == "no-logprobs" or self.lasting in ("no-logprobs-ever", "text-chat", "draws") or not named:
            logprobs = None
        elif chat:
            top = [{"token": t, "logprob": v, "bytes": []} for t, v in named]
            logprobs = {"content": [{**top[0], "top_logprobs": top}]}
        else:
            logprobs = {"tokens": [named[0][0]], "token_logprobs": [named[0][1]], "top_logprobs": [dict(named)]}
            if fault == "duplicate":  # in a mapping only two names of one token can stand: its id and its text
                logprobs["top_logprobs"][0][world.text_of([pairs[0][0]])] = named[0][1] - 5
            if fault == "two-tokens":
                logprobs = {n: v * 2 for n, v in logprobs.items()}
        text = "<script>alert('x')</script>" if self.lasting == "html-text" else world.text_of([written])
        text = "▁" if fault == "foreign-tokens" else text
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": logprobs, "finish_reason": "length"}
        template = world.TEMPLATE if self.lasting == "chat-template" else 0
        usage = {"prompt_tokens": len(prompt) + template, "completion_tokens": 1}
        return 200, {"id": "x", "choices": [choice] * (2 if fault == "two-choices" else 1), "usage": usage}

    def pairs(self, at: int, k: int) -> list[tuple[int, Any]]:
        formula, setting = served(self.platform), self.setting
        turn = self.probes.setdefault(str(at), len(self.probes))
        if self.lasting == "switch" and turn >= self.switch_at:
            formula = served(self.other)
        if self.lasting == "mixture" and at % 2:  # whichever comes first
            formula = served(self.other)
        if self.lasting == "unseen-class":
            formula = world.uncollected(formula, self.unrest)
        if self.lasting == "batches":  # they grow and shrink with whoever else asks
            setting = random.Random(f"{self.seed} {at}").randrange(100)
        if self.lasting == "wrong-model":
            formula = world.Formula("finetuned", 77, 0.5, "bf16")
        rows = rows_of(formula, setting)
        ids, values = top_k(rows[at : at + 1], max(k, 1))
        found: list[tuple[int, Any]] = [(int(i), float(v)) for i, v in zip(ids[0], values[0], strict=True)]
        how, _, digits = self.lasting.rpartition("-")
        if how in ROUNDED:
            found = [(i, ROUNDED[how](v * 10 ** int(digits)) / 10 ** int(digits)) for i, v in found]
        if self.lasting == "always-nan":
            found[1] = (found[1][0], float("nan"))
        if self.lasting == "unsorted":
            found = [found[0], *random.Random(at).sample(found[1:], len(found) - 1)]
        return found

    def draw(self, pairs: list[tuple[int, Any]]) -> int:
        """A server that ignores `temperature`, and has a high one."""
        rng = random.Random(self.asked.total())
        return rng.choices([t for t, _ in pairs], [math.exp(v / 4) for _, v in pairs])[0]

    def spoil(self, pairs: list[tuple[int, Any]], fault: str) -> list[tuple[int, Any]]:
        if not pairs:
            return pairs
        token = pairs[-1][0]
        if fault == "fewer":
            return pairs[: max(1, len(pairs) // 2)]
        if fault == "too-much-probability":
            return [(t, -0.1) for t, _ in pairs]
        worse = {"nan": float("nan"), "infinite": float("-inf"), "string": "-1.0", "missing": None, "positive": 0.7}
        return [*pairs[:-1], (token, worse[fault])] if fault in worse else pairs


def prompt_of(body: dict[str, Any]) -> list[int]:
    """The ids that a question is about, however it is put."""
    prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return [int(t) for t in prompt.strip("<>").split("><")] if isinstance(prompt, str) else list(prompt)


def served(platform: str) -> world.Formula:
    return world.EVERYONE[platform if "/" in platform else f"cpu/{platform}"]


_rows: dict[tuple[world.Formula, int], Any] = {}


def rows_of(formula: world.Formula, setting: int) -> Any:
    if (formula, setting) not in _rows:
        _rows[formula, setting] = world.answers(formula, setting)
    return _rows[formula, setting]


@contextmanager
def serving(server: Misbehaving) -> Iterator[Misbehaving]:
    """The server on a free port of the loopback, in a thread of its own, until the block ends."""
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def run() -> None:
        found = await asyncio.start_server(server.connection, "127.0.0.1", server.port, limit=1 << 22)
        server.port = found.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        found.close()

    def whole() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=whole, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
