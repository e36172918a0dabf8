"""The audit's client beside a bare load generator, on one server, in one run: requests a second at equal concurrency.

The server answers a top-20 completion after 50 ms, `--slots` at a time, as an inference server with a batch would.

python benchmarks/bench_client.py [--requests 120] [--concurrency 8] [--rounds 9]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import httpx2

from hspi.audits.answers import Names, read_answer
from hspi.audits.gathering import in_order
from hspi.client import Endpoint, Question, Reply

NAMES = Names([str(i) for i in range(5000)])
TOP = {f"token_id:{i}": -1.5 - i for i in range(20)}
LOGPROBS = {"tokens": ["token_id:0"], "token_logprobs": [-1.5], "top_logprobs": [TOP]}
ANSWER = json.dumps({"choices": [{"text": "x", "logprobs": LOGPROBS}], "usage": {"prompt_tokens": 16}}).encode()
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n".encode()
BODY = {"model": "m", "prompt": list(range(16)), "max_tokens": 1, "logprobs": 20, "temperature": 0}


async def start_server(slots: int, seconds: float) -> asyncio.Server:
    gate = asyncio.Semaphore(slots)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                async with gate:
                    await asyncio.sleep(seconds)
                writer.write(HEAD + ANSWER)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            writer.close()

    return await asyncio.start_server(connection, "127.0.0.1", 0)


async def bare(url: str, requests: int, concurrency: int) -> float:
    """Workers that post and read, and do nothing else."""
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    left = iter(range(requests))
    async with httpx2.AsyncClient(limits=limits) as http:

        async def worker() -> None:
            for _ in left:
                (await http.post(f"{url}/completions", json=BODY)).raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return requests / (time.perf_counter() - began)


async def ours(url: str, requests: int, concurrency: int) -> float:
    """What an audit does with each answer, scoring excepted: ask, check, read, hand on in order."""

    def check(reply: Reply) -> object:
        return read_answer(reply.data, NAMES, 20)

    async with Endpoint(url, "key", concurrency) as endpoint:
        jobs = [lambda i=i: endpoint.ask(Question(f"q{i}", "completions", BODY), check) for i in range(requests)]
        began = time.perf_counter()
        await in_order(jobs, concurrency * 3 // 2 + 1, lambda at, reply: False)
        return requests / (time.perf_counter() - began)


async def main(requests: int, concurrency: int, rounds: int, slots: int, milliseconds: float) -> None:
    server = await start_server(slots, milliseconds / 1000)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    await bare(url, 50, concurrency)
    await ours(url, 50, concurrency)
    pairs = []
    for _ in range(rounds):
        pairs.append((await bare(url, requests, concurrency), await ours(url, requests, concurrency)))
    for b, o in pairs:
        print(f"bare {b:7.1f}/s   hspi {o:7.1f}/s   ratio {o / b:.3f}")
    print(f"median ratio {statistics.median(o / b for b, o in pairs):.3f} (to reach: 0.9)")
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--milliseconds", type=float, default=50)
    a = parser.parse_args()
    asyncio.run(main(a.requests, a.concurrency, a.rounds, a.slots, a.milliseconds))
