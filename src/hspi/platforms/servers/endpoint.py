"""The adapter over HTTP: any server that takes token ids and answers with log-probabilities, started here or not.

Questions are OpenAI's completions with lists of token-id prompts, one token each. Two shapes of answers are read:
vLLM's (a mapping, tokens named `token_id:7`) and llama.cpp's (a list of records with an `id`). A log-probability is a
float32 that was printed as a decimal and comes back with every bit.

A position before the last is asked as a prompt that ends there: servers that give log-probabilities of the prompt
print them for every token of it, which costs more than asking. A token that the server does not report is at -inf.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

import numpy as np
import numpy.typing as npt

from hspi.client import NoRedirects, shown_url
from hspi.errors import ConfigError, EndpointError, PlatformError
from hspi.platforms.batches import check_contexts, continue_greedily
from hspi.platforms.convert import cache_folder
from hspi.platforms.record import Context, LogProbs, Platform
from hspi.platforms.servers import environments
from hspi.platforms.servers.launch import Server, flags, launch
from hspi.zoo import weights_hash

# Alternatives to ask for, the most first. Signatures keep 256 at most, and printing 4,096 takes longer than the model.
LADDER = (512, 256, 100, 64, 20)
USUAL = 20  # alternatives that OpenAI's API gives at most, and that an audit asks for
TIMEOUT = 600.0
LARGEST = 1 << 30


class EndpointAdapter:
    """An `Adapter` over a server at `url` (up to /v1). `server` is what was started here, and ends with this object."""

    def __init__(
        self,
        url: str,
        served: str,
        vocab_size: int,
        facts: dict[str, str],
        extra: dict[str, Any] | None = None,
        server: Server | None = None,
        usual: int = 0,
    ) -> None:
        """usual: so many alternatives are asked for by themselves too, where bits depend on how many are asked."""
        self.vocab_size, self._usual = vocab_size, usual
        self._url, self._served, self._extra, self._server = url, served, extra or {}, server
        self._opener = _opener(url)
        self._count = self._find_count()
        self._facts = {**facts, "alternatives": str(self._count)}

    def logprobs(self, contexts: list[Context], positions: int) -> LogProbs:
        """See `Adapter.logprobs`. Raises DataError on what `check_contexts` refuses, EndpointError on a bad answer."""
        check_contexts(contexts, positions, self.vocab_size)
        cut = [[c[: len(c) - back] for c in contexts] for back in range(positions - 1, -1, -1)]
        return np.stack([self._rows(prompts) for prompts in cut], axis=1)

    def greedy(self, contexts: list[Context], new_tokens: int) -> npt.NDArray[np.int64]:
        """See `Adapter.greedy`. The whole context is asked again for each token, as other engines are."""
        return continue_greedily(self.logprobs, contexts, new_tokens)

    def facts(self) -> dict[str, str]:
        return dict(self._facts)

    def close(self) -> None:
        """End the server that was started for this adapter, if one was."""
        if self._server:
            self._server.close()

    def _rows(self, prompts: list[Context]) -> LogProbs:
        """All alternatives; the best of them as they come when only those are asked for."""
        wide = self._ask(prompts, self._count)
        if not 0 < self._usual < self._count:
            return wide
        best = self._ask(prompts, self._usual)
        return np.where(np.isfinite(best), best, wide)

    def _find_count(self) -> int:
        """How many alternatives the server gives. It refuses what is beyond its limit."""
        why = ""
        for count in dict.fromkeys(min(n, self.vocab_size) for n in LADDER):
            try:
                self._ask([np.array([self.vocab_size // 2])], count)
                return count
            except _Refused as refused:
                why = str(refused)
        raise EndpointError(f"{shown_url(self._url)} must give at least {LADDER[-1]} log-probabilities, but: {why}")

    def _ask(self, prompts: list[Context], count: int) -> LogProbs:
        body = {
            "model": self._served,
            "prompt": [[int(t) for t in p] for p in prompts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": count,
            "return_tokens_as_token_ids": True,
            **self._extra,
        }
        data = _post(self._opener, f"{self._url}/completions", body)
        try:
            return read_rows(data, len(prompts), self.vocab_size, count)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EndpointError(f"{shown_url(self._url)} must answer with log-probabilities by token id, but: "
                                f"{type(error).__name__} {str(error)[:160]}") from error  # fmt: skip


def start(platform: Platform, model_path: Path, threads: int = 1) -> EndpointAdapter:
    """Start the platform's own server on a free port of the loopback. Raises PlatformError where it does not run."""
    name, port = "model", free_port()
    what = launch(platform, model_path, host="127.0.0.1", port=port, name=name, threads=threads)
    log = cache_folder() / "logs" / f"{platform.id}-{weights_hash(model_path)[:8]}.log"
    server = Server(what, f"http://127.0.0.1:{port}", log)
    server.wait()
    facts = {"server": platform.engine, "flags": " ".join(flags(platform))}
    facts |= {f"version_{k}": v for k, v in environments.versions(platform.engine).items()}
    try:
        url, own = f"{server.url}/v1", _own(platform, f"{server.url}/v1")
        return EndpointAdapter(url, name, _vocabulary(model_path), facts, own, server, _usual(platform))
    except EndpointError as error:
        server.close()
        raise PlatformError(f"{platform.id} must serve {model_path}, but: {error} (log: {log})") from error


def attach(url: str, served: str, platform: Platform, model_path: Path) -> EndpointAdapter:
    """A server that runs already, said to serve the model at `model_path` on `platform`. Raises EndpointError.

    OPENAI_API_KEY is sent where it is set, and kept nowhere. Raises ConfigError where `url` is none.
    """
    url, parts = url.rstrip("/"), urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ConfigError(f"base URL must be http(s)://HOST/… without user and password, but got {shown_url(url)!r}")
    facts = {"endpoint": shown_url(url), "served_name": served}
    own = _own(platform, url)
    return EndpointAdapter(url, served, _vocabulary(model_path), facts, own, usual=_usual(platform))


def _usual(platform: Platform) -> int:
    """llama.cpp sorts only as many tokens as it is asked for before it adds up their probabilities, so that the
    normaliser, and with it every log-probability, moves by a few units in the last place with their number.
    """
    return USUAL if platform.engine == "llama.cpp" else 0


def _own(platform: Platform, url: str) -> dict[str, Any]:
    """Fields beyond OpenAI's that both engines know how to take; none of them touches a log-probability.

    llama.cpp reports none for an answer that ends at once or is part of a character, so it is made to write an `a`; and
    it would take up a prompt that it has seen before, and compute less of it: other bits.
    """
    if platform.engine == "llama.cpp":
        tokens = _post(_opener(url), f"{url.removesuffix('/v1')}/tokenize", {"content": "a"})["tokens"]
        return {"logit_bias": {str(tokens[0]): 1000}, "cache_prompt": False}
    return {"ignore_eos": True} if platform.engine == "vllm" else {}


def _vocabulary(model_path: Path) -> int:
    config = json.loads((model_path / "config.json").read_text("utf-8"))
    return int(config.get("text_config", config)["vocab_size"])


def read_rows(data: Any, prompts: int, vocab_size: int, count: int) -> LogProbs:
    """Log-probabilities of the first token of each choice: float32 (prompts, vocab_size), -inf where not reported.

    Raises KeyError, IndexError, TypeError or ValueError where the answer is not one to such a question.
    """
    rows = np.full((prompts, vocab_size), -np.inf, np.float32)
    choices = data["choices"]
    if sorted(c["index"] for c in choices) != list(range(prompts)):
        raise ValueError(f"{prompts} choices must come, each once, but got {len(choices)}")
    for choice in choices:
        pairs = _pairs(choice["logprobs"])
        ids = np.fromiter((i for i, _ in pairs), np.int64, len(pairs))
        values = np.fromiter((v for _, v in pairs), np.float64, len(pairs)).astype(np.float32)
        if len(set(ids.tolist())) != len(ids) or not np.isfinite(values).all() or (values > 1e-3).any():
            raise ValueError("each token must come once, with a finite log-probability at most 0")
        if len(ids) < min(count, vocab_size) or ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(f"{count} tokens of the vocabulary must come, but got {len(ids)}")
        rows[choice["index"], ids] = values
    return rows


def _pairs(logprobs: dict[str, Any]) -> list[tuple[int, float]]:
    if "content" in logprobs:
        return [(int(t["id"]), float(t["logprob"])) for t in logprobs["content"][0]["top_logprobs"]]
    return [(int(n.removeprefix("token_id:")), float(v)) for n, v in logprobs["top_logprobs"][0].items()]


class _Refused(EndpointError):
    """The server will not answer such a question (status 4xx)."""


def _post(opener: OpenerDirector, url: str, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY", ""):
        headers["authorization"] = f"Bearer {key}"
    try:
        with opener.open(Request(url, json.dumps(body).encode(), headers), timeout=TIMEOUT) as response:
            return json.loads(response.read(LARGEST))
    except HTTPError as error:
        said = " ".join(error.read(400).decode("utf-8", "replace").split()).replace(key or "\0", "[key]")
        kind = _Refused if 400 <= error.code < 500 else EndpointError
        raise kind(f"{shown_url(url)} answered {error.code}: {said[:200]}") from None
    except (URLError, OSError, ValueError) as error:
        raise EndpointError(f"{shown_url(url)} must answer, but: {' '.join(str(error).split())[:200]}") from None


def _opener(url: str) -> OpenerDirector:
    """Without the environment's proxies on the loopback, and deaf to redirections, which the key must not follow."""
    near = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    return build_opener(NoRedirects, *([ProxyHandler({})] if near else []))


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
