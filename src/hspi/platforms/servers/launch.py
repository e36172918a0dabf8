"""How an inference server is started, and its process: in an environment of its own, with the platform's flags.

Nothing of a server is imported here: it is asked over HTTP (endpoint.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from hspi.errors import ModelError, PlatformError
from hspi.platforms.convert import cache_folder
from hspi.platforms.machine import ISA_VARIABLES
from hspi.platforms.record import Platform
from hspi.platforms.servers.environments import environment, stands, why_not
from hspi.platforms.servers.gguf import gguf_file

APART = Path(__file__).parent / "apart"
LONGEST = 2048  # tokens of prompt and answer, where the model allows as many
PATIENCE = 600  # seconds until a server answers: vLLM takes 20 to 150, as busy as the machine is


@dataclass(frozen=True, slots=True)
class Launch:
    """A command and its whole environment."""

    command: list[str]
    environment: dict[str, str]


def launch(
    platform: Platform, model_path: Path, *, host: str, port: int, name: str, slots: int = 16, threads: int = 1
) -> Launch:
    """How the platform's real server is started; converts the weights first where the engine wants its own format.

    slots: sequences that share a batch at most; more wait. Raises PlatformError where the environment does not stand
    or the weights cannot be converted, ModelError where `model_path` holds no model.
    """
    if not stands(platform.engine):
        raise PlatformError(f"{platform.id} {why_not(platform.engine)}")
    python = str((environment(platform.engine) / "bin" / "python").absolute())
    at = {"host": host, "port": str(port)}
    build = {"vllm": _vllm, "llama.cpp": _llama_cpp}[platform.engine]
    arguments, variables = build(platform, model_path, at, name, slots, threads)
    plain = {k: v for k, v in os.environ.items() if k not in ISA_VARIABLES and not k.startswith(("VLLM_", "PYTHON"))}
    own = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return Launch([python, *arguments], {**plain, **own, **variables, **platform.env})


def _vllm(
    platform: Platform, model_path: Path, at: dict[str, str], name: str, slots: int, threads: int
) -> tuple[list[str], dict[str, str]]:
    arguments = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path.absolute())]
    arguments += ["--served-model-name", name, "--host", at["host"], "--port", at["port"]]
    arguments += [*vllm_flags(platform), "--max-model-len", str(context_of(model_path)), "--max-num-seqs", str(slots)]
    # One GiB for keys and values holds 16 sequences of models this size; the rest is what vLLM would set aside unasked.
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or two servers would share one core
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str((cache_folder() / "vllm").absolute()),
    }
    return [*arguments, "--load-format", "safetensors", "--gpu-memory-utilization", "0.1"], variables


def vllm_flags(platform: Platform) -> list[str]:
    """The flags that make the arithmetic; they travel in the signature's facts."""
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[platform.dtype]
    flags = ["--dtype", dtype, "--max-logprobs", "-1", "--no-enable-prefix-caching"]
    flags += [] if platform.compile else ["--enforce-eager"]
    return flags if platform.kv_cache == "none" else [*flags, "--kv-cache-dtype", platform.kv_cache]


def _llama_cpp(
    platform: Platform, model_path: Path, at: dict[str, str], name: str, slots: int, threads: int
) -> tuple[list[str], dict[str, str]]:
    file = gguf_file(environment(platform.engine), model_path, gguf_format(platform))
    arguments = [str(APART / "llama_server.py"), "--model", str(file.absolute()), "--name", name]
    arguments += [
        "--host",
        at["host"],
        "--port",
        at["port"],
        "--slots",
        str(slots),
        "--context",
        str(context_of(model_path)),
    ]
    return [*arguments, "--threads", str(threads), *llama_flags(platform)], {}


def llama_flags(platform: Platform) -> list[str]:
    """The flags that make the arithmetic; they travel in the signature's facts."""
    flash = "on" if platform.attention == "flash" else "off"
    cache_type = {"none": "f32", "fp16": "f16"}[platform.kv_cache]
    return ["--flash-attention", flash, "--cache-type", cache_type]


def gguf_format(platform: Platform) -> str:
    """The weights' format in GGUF's own words."""
    return str(platform.options["gguf"])


def flags(platform: Platform) -> list[str]:
    return vllm_flags(platform) if platform.engine == "vllm" else llama_flags(platform)


@cache
def context_of(model_path: Path) -> int:
    """Tokens that a sequence may hold: the model's own limit, and LONGEST at most."""
    try:
        config = json.loads((model_path / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"a model's folder must hold a readable config.json, but {model_path} does not") from error
    return min(LONGEST, int(config.get("text_config", config).get("max_position_embeddings", LONGEST)))


class Server:
    """A started server. It ends when `close` is called, when this object goes, and when this process ends or is killed.

    Raises PlatformError, with the log's last line, where it ends before it answers or is silent for too long.
    """

    def __init__(self, what: Launch, url: str, log: Path) -> None:
        self.url, self.log = url, log
        log.parent.mkdir(parents=True, exist_ok=True)
        supervised = [sys.executable, "-I", str(APART / "supervise.py"), *what.command]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                supervised,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=what.environment,
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _end, self._process)

    def wait(self, path: str = "/health", seconds: float = PATIENCE) -> None:
        opener = build_opener(ProxyHandler({}))
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with opener.open(f"{self.url}{path}", timeout=5) as response:
                    if response.status == 200:
                        return
            except (URLError, OSError):
                time.sleep(0.1)
        self.close()
        raise PlatformError(f"a server must answer within {seconds:g} s, but: {self._why()} (log: {self.log})")

    def _why(self) -> str:
        said = [line.strip() for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        wrong = [line for line in said if "Error" in line and not line.endswith("See root cause above.")]
        return " ".join(([*wrong[:1], *said[-1:]] or ["it said nothing"])[0].split())[-300:]


def _end(process: subprocess.Popen[Any]) -> None:
    """Closing the supervisor's input ends the server and all that it started."""
    if process.stdin:
        process.stdin.close()
    process.wait()
