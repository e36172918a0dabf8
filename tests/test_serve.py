"""The server over an adapter that answers by formula: what API clients see, and who shares a batch."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from conftest import ROOT, answers, free_port
from hspi.platforms.batches import BatchAdapter
from hspi.serve.app import Server, choose
from hspi.serve.batching import Batcher
from hspi.serve.wire import Vocabulary

SIZE = 50


class Formula(BatchAdapter):
    """Logits of a position depend on its own token and place; the batch leaves a mark, as real ones do."""

    vocab_size = SIZE

    def _logits(self, ids: Any, keep: int) -> Any:
        token, place = ids[:, -keep:, None], np.arange(ids.shape[1])[None, -keep:, None]
        return np.sin(token * 7.0 + place + np.arange(SIZE) * 1.3).astype(np.float32) * 4 + 1e-6 * len(ids)

    def facts(self) -> dict[str, str]:
        return {}


class Letters:
    """A tokenizer: one character a token."""

    eos_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) - 65 for c in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids)


def talk(work: Callable[[httpx2.AsyncClient], Awaitable[Any]], max_batch: int = 8) -> tuple[Any, list[int]]:
    """The result of `work`, and the sizes of the batches that it made."""

    async def inside() -> Any:
        batcher = Batcher(Formula(), max_batch)
        app = Server(batcher, Vocabulary(Letters(), SIZE), "toy", limit=64).app()
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://t") as http,
        ):
            return await work(http), batcher.served

    found: tuple[Any, list[int]] = asyncio.run(inside())
    return found


def ask(path: str = "/v1/completions", **body: Any) -> httpx2.Response:
    found: httpx2.Response = talk(lambda http: http.post(path, json=body))[0]
    return found


def expected(context: list[int]) -> np.ndarray:
    return Formula().logprobs([np.asarray(context)], 1)[0, 0]


def test_one_token_comes_with_exact_bits_of_the_adapter() -> None:
    data = ask(prompt=[3, 4, 5], max_tokens=1, logprobs=20, return_tokens_as_token_ids=True).json()
    top = data["choices"][0]["logprobs"]["top_logprobs"][0]
    row = expected([3, 4, 5])
    ids = [int(name.removeprefix("token_id:")) for name in top]
    assert ids == np.argsort(-row, kind="stable")[:20].tolist()
    assert np.array_equal(np.array(list(top.values()), np.float32), row[ids])
    assert data["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


def test_text_lists_and_ids_are_one_prompt() -> None:
    forms: list[Any] = ["DEF", [3, 4, 5], ["DEF"], [[3, 4, 5]]]
    texts = [ask(prompt=p, max_tokens=4).json()["choices"][0]["text"] for p in forms]
    assert len(set(texts)) == 1 and len(texts[0]) == 4


def test_echo_gives_the_prompt_its_own_log_probabilities() -> None:
    found = ask(prompt="DEF", max_tokens=1, logprobs=2, echo=True).json()["choices"][0]
    own = found["logprobs"]["token_logprobs"]
    assert found["text"].startswith("DEF") and own[0] is None
    whole = Formula().logprobs([np.array([3, 4, 5])], 3)[0]
    assert own[1:3] == [float(whole[0, 4]), float(whole[1, 5])]


def test_greedy_is_the_argmax_of_each_context_and_seeds_repeat_draws() -> None:
    found = ask(prompt=[1, 2], max_tokens=5, logprobs=1, return_tokens_as_token_ids=True).json()["choices"][0]
    context = [1, 2]
    for name in found["logprobs"]["tokens"]:
        assert int(name.removeprefix("token_id:")) == expected(context).argmax()
        context.append(int(expected(context).argmax()))
    drawn = [ask(prompt=[1, 2], max_tokens=8, temperature=1.5, seed=5).json()["choices"][0]["text"] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_draws_follow_the_distribution() -> None:
    row, rng = np.log(np.array([0.6, 0.3, 0.1], np.float32)), np.random.default_rng(0)
    counts = np.bincount([choose(row, 1.0, rng) for _ in range(5000)], minlength=3) / 5000
    assert np.allclose(counts, [0.6, 0.3, 0.1], atol=0.03)


def test_chat_shows_top_logprobs_and_a_plain_template() -> None:
    messages = [{"role": "user", "content": "DE"}, {"role": "user", "content": "F"}]
    data = ask("/v1/chat/completions", messages=messages, max_tokens=1, logprobs=True, top_logprobs=3).json()
    (entry,) = data["choices"][0]["logprobs"]["content"]
    assert data["usage"]["prompt_tokens"] == 3
    assert [t["logprob"] for t in entry["top_logprobs"]] == np.sort(expected([3, 4, 5]))[::-1][:3].tolist()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [1.5]},
        {"prompt": [SIZE]},
        {"prompt": [-1]},
        {"prompt": [True]},
        {"prompt": "A", "logprobs": 101},
        {"prompt": "A", "logprobs": "5"},
        {"prompt": "A", "max_tokens": -1},
        {"prompt": "A", "max_tokens": 10**9},
        {"prompt": "A", "temperature": float(10**6)},
        {"prompt": "A", "n": 3},
        {"prompt": "A", "echo": "yes"},
    ],
)
def test_a_bad_request_gets_400_and_one_line(body: dict[str, Any]) -> None:
    response = ask(**body)
    assert response.status_code == 400 and "\n" not in response.json()["error"]["message"]


def test_other_models_and_broken_bodies_are_refused() -> None:
    assert ask(prompt="A", model="other").status_code == 404
    assert talk(lambda http: http.post("/v1/completions", content=b"{"))[0].status_code == 400
    assert talk(lambda http: http.post("/v1/completions", content=b"[" * 100_000))[0].status_code == 400


def test_requests_that_wait_share_batches_up_to_the_limit_and_answers_stay_their_own() -> None:
    async def work(http: httpx2.AsyncClient) -> list[Any]:
        bodies = [{"prompt": [i, i + 1, i + 2][: 1 + i % 3], "max_tokens": 1, "logprobs": 1} for i in range(30)]
        return await asyncio.gather(*(http.post("/v1/completions", json=b) for b in bodies))

    responses, batches = talk(work, max_batch=4)
    assert max(batches) == 4 and sum(batches) == 30 and len(batches) < 30
    for i, response in enumerate(responses):
        text = response.json()["choices"][0]["text"]
        assert ord(text) - 65 == expected([i, i + 1, i + 2][: 1 + i % 3]).argmax()


def test_an_error_in_one_batch_leaves_the_server_running() -> None:
    async def work(http: httpx2.AsyncClient) -> list[int]:
        bad = await http.post("/v1/completions", json={"prompt": "A", "max_tokens": 1, "logprobs": 60})
        good = await http.post("/v1/completions", json={"prompt": "A", "max_tokens": 1, "logprobs": 5})
        return [bad.status_code, good.status_code]

    assert talk(work)[0] == [400, 200]  # 60 alternatives of a vocabulary of 50


@pytest.mark.slow
def test_a_real_platform_is_served_on_the_loopback_and_ends_on_a_signal() -> None:
    port = free_port()
    command = [sys.executable, "-m", "hspi", "serve", "--platform", "torch-fp32", "--model", "llama"]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        body = {"model": "llama", "prompt": [5, 6, 7], "max_tokens": 1, "logprobs": 100}
        data = httpx2.post(f"http://127.0.0.1:{port}/v1/completions", json=body).json()
        assert len(data["choices"][0]["logprobs"]["top_logprobs"][0]) >= 90  # texts that tokens share are one name
    finally:
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) in (0, 130, -signal.SIGINT)
