"""A server before a real one that gives less than it does: rounded numbers, no numbers, a chat template around."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

Reply = tuple[int, dict[str, Any]]


class Lessening:
    """how: "rounded-D", "silent" (no log-probabilities) or "chat" (chat alone, in `tokenizer`'s own template)."""

    def __init__(self, behind: str, how: str, tokenizer: Any = None) -> None:
        self.behind, self.how, self.tokenizer, self.url = behind, how, tokenizer, ""

    def ask(self, path: str, body: dict[str, Any]) -> Reply:
        data = json.dumps(body).encode()
        request = Request(f"{self.behind}/{path}", data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            return error.code, json.load(error)

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        chat = path.endswith("chat/completions")
        if self.how == "chat":
            return self.templated(body) if chat else (404, {"error": {"message": "chat alone"}})
        status, data = self.ask("chat/completions" if chat else "completions", body)
        for choice in data.get("choices", []):
            if self.how == "silent":
                choice["logprobs"] = None
            else:
                choice["logprobs"] = rounded(choice["logprobs"], int(self.how[-1]))
        return status, data

    def templated(self, body: dict[str, Any]) -> Reply:
        ids = list(self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False))
        asked = {"max_tokens": 1, "temperature": 0, "prompt": ids, "return_tokens_as_token_ids": True}
        status, data = self.ask("completions", {**asked, "logprobs": body.get("top_logprobs") or 0})
        if status != 200:
            return status, data
        found = data["choices"][0]["logprobs"]["top_logprobs"][0]
        top = [{"token": name, "logprob": value} for name, value in found.items()]
        choice = {"message": {"role": "assistant", "content": data["choices"][0]["text"]}}
        return 200, {**data, "choices": [{**choice, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}]}

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The URL, up to /v1, while the block runs."""
        whole = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, data = whole.answer(self.path, body)
                text = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *words: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/v1"
            server.shutdown()


def rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value
