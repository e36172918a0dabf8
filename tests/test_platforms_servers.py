"""Servers in environments of their own: commands, conversions' names, answers as they are read, and who ends when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, Tree, answers, free_port
from hspi.errors import ConfigError, EndpointError, ModelError, PlatformError
from hspi.platforms.catalogue import CATALOGUE, get
from hspi.platforms.convert import cache_folder
from hspi.platforms.machine import availability
from hspi.platforms.servers import launch as serving
from hspi.platforms.servers.endpoint import EndpointAdapter, attach, read_rows
from hspi.platforms.servers.environments import ENVIRONMENTS
from hspi.platforms.servers.gguf import FORMATS, gguf_file, gguf_place
from hspi.signatures.schema import Signature, read_signature
from test_serve import SIZE, Formula, Letters

SERVERS = [p for p in CATALOGUE.values() if p.engine in ENVIRONMENTS]

# What the servers really answered to two prompts with two alternatives, less the fields that are not read.
VLLM_0_32_0 = """{"choices": [
 {"index": 0, "text": ",", "logprobs": {"text_offset": [0], "token_logprobs": [-2.3772196769714355],
  "tokens": ["token_id:15"],
  "top_logprobs": [{"token_id:15": -2.3772196769714355, "token_id:293": -3.5022196769714355}]}},
 {"index": 1, "text": "p", "logprobs": {"text_offset": [0], "token_logprobs": [-3.988379955291748],
  "tokens": ["token_id:83"],
  "top_logprobs": [{"token_id:83": -3.988379955291748, "token_id:297": -4.019629955291748}]}}]}"""
LLAMA_CPP_B11549 = """{"choices": [
 {"text": ",", "index": 0, "logprobs": {"content": [{"id": 15, "token": ",", "bytes": [44],
  "logprob": -2.430191993713379, "top_logprobs": [
   {"id": 15, "token": ",", "bytes": [44], "logprob": -2.430191993713379},
   {"id": 293, "token": " to", "bytes": [32, 116, 111], "logprob": -3.51522159576416}]}]}},
 {"text": "p", "index": 1, "logprobs": {"content": [{"id": 83, "token": "p", "bytes": [112],
  "logprob": -4.005115985870361, "top_logprobs": [
   {"id": 83, "token": "p", "bytes": [112], "logprob": -4.005115985870361},
   {"id": 297, "token": "it", "bytes": [105, 116], "logprob": -4.027590274810791}]}]}}]}"""


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both environments say that they stand, though nothing is in them but a Python."""
    for name in ENVIRONMENTS.values():
        (tmp_path / "envs" / name / "bin").mkdir(parents=True)
        (tmp_path / "envs" / name / "bin" / "python").symlink_to(sys.executable)
        (tmp_path / "envs" / name / "hspi.json").write_text('{"pins": "", "versions": {"server": "1.0"}}')
    monkeypatch.setenv("HSPI_ENVS", str(tmp_path / "envs"))
    monkeypatch.setenv("HSPI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "envs"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"max_position_embeddings": 96, "vocab_size": {SIZE}}}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def started(platform: str, model: Path, **more: Any) -> serving.Launch:
    return serving.launch(get(platform), model, host="127.0.0.1", port=8123, name="m", **more)


def follows(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


# ---------------------------------------------------------------- commands


def test_vllm_is_started_as_the_record_says(environments: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    plain, compiled = started("vllm-bf16", model, slots=5, threads=3), started("vllm-bf16-compiled", model)
    assert plain.command[0] == str(environments / "vllm" / "bin" / "python")
    assert follows(plain.command, "--dtype") == "bfloat16" and follows(plain.command, "--max-num-seqs") == "5"
    assert follows(plain.command, "--max-model-len") == "96" and follows(plain.command, "--port") == "8123"
    assert "--enforce-eager" in plain.command and "--enforce-eager" not in compiled.command
    assert follows(started("vllm-bf16-fp8kv", model).command, "--kv-cache-dtype") == "fp8"
    assert follows(plain.command, "--load-format") == "safetensors", "vLLM would take a pickle for want of those"
    assert plain.environment["OMP_NUM_THREADS"] == "3"
    assert not {"ONEDNN_MAX_CPU_ISA", "PYTHONPATH"} & set(plain.environment), "no cap and no path is inherited"


def test_llama_cpp_is_started_on_its_own_file(environments: Path, model: Path) -> None:
    file = gguf_place(environments / "llama-cpp", model, "q8_0")
    file.parent.mkdir(parents=True)
    file.touch()
    command = started("llamacpp-q8_0", model).command
    assert follows(command, "--model") == str(file) and follows(command, "--context") == "96"
    assert follows(command, "--flash-attention") == "off" and follows(command, "--cache-type") == "f16"


@pytest.mark.parametrize("platform", SERVERS, ids=lambda p: p.id)
def test_without_its_environment_a_server_says_how_to_make_it(
    platform: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSPI_ENVS", str(tmp_path / "none"))
    why = availability(platform, flags=frozenset(platform.needs_cpu)).why_not
    assert why.endswith(f"run  make {ENVIRONMENTS[platform.engine]}") and "\n" not in why
    with pytest.raises(PlatformError, match="run  make"):
        started(platform.id, model)


def test_the_makefile_knows_each_environment() -> None:
    rules = (ROOT / "Makefile").read_text()
    for name in ENVIRONMENTS.values():
        assert f"\n{name}:\n\t$(PYTHON) scripts/environments.py {name}\n" in rules
        pins = [x for x in (ROOT / "scripts/environments" / f"{name}.txt").read_text().splitlines() if x[0] != "#"]
        assert pins and all(x.count("==") == 1 for x in pins)


# ---------------------------------------------------------------- GGUF


def test_a_gguf_file_is_named_by_all_that_makes_it(environments: Path, model: Path) -> None:
    where = environments / "llama-cpp"
    places = [gguf_place(where, model, kind) for kind in FORMATS]
    (model / "tokenizer.json").write_text('{"other": 1}')
    places.append(gguf_place(where, model, "f32"))
    (model / "model.safetensors").write_bytes(b"other weights")
    places.append(gguf_place(where, model, "f32"))
    (where / "hspi.json").write_text('{"pins": "", "versions": {"server": "1.1"}}')
    places.append(gguf_place(where, model, "f32"))
    assert len(set(places)) == len(places) and all(p.is_relative_to(cache_folder()) for p in places)
    with pytest.raises(ConfigError, match="f32, f16, bf16, q8_0, q4_0, but got 'q5_1'"):
        gguf_place(where, model, "q5_1")
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        gguf_place(where, model, "f32")


def test_a_conversion_that_fails_leaves_nothing(environments: Path, model: Path) -> None:
    with pytest.raises(PlatformError, match=r"must convert to GGUF f16, but: .*convert_hf_to_gguf"):
        gguf_file(environments / "llama-cpp", model, "f16")
    assert not [p for p in cache_folder().rglob("*") if p.is_file()]


def test_a_gguf_file_is_never_made_from_a_pickle(environments: Path, model: Path) -> None:
    """llama.cpp's converter looks for pytorch_model*.bin where there is no model*.safetensors."""
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"made from model\*\.safetensors"):
        gguf_file(environments / "llama-cpp", model, "f16")


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("said", "own", "next_best"),
    [
        (VLLM_0_32_0, -2.3772196769714355, -4.019629955291748),
        (LLAMA_CPP_B11549, -2.430191993713379, -4.027590274810791),
    ],
)
def test_answers_of_both_servers_are_read_to_the_last_bit(said: str, own: float, next_best: float) -> None:
    rows = read_rows(json.loads(said), 2, 4096, 2)
    assert rows.dtype == np.float32 and np.isfinite(rows).sum(axis=1).tolist() == [2, 2]
    assert (rows[0, 15], rows[1, 297]) == (np.float32(own), np.float32(next_best))
    assert rows.argmax(axis=1).tolist() == [15, 83]


def broken(change: Any) -> dict[str, Any]:
    data = json.loads(LLAMA_CPP_B11549)
    change(data["choices"])
    return dict(data)


def top(choices: list[Any]) -> list[Any]:
    return list(choices[0]["logprobs"]["content"][0]["top_logprobs"])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop(),
        lambda c: c[1].update(index=0),
        lambda c: c[0].update(logprobs=None),
        lambda c: c[0]["logprobs"].update(content=[]),
        lambda c: c[0]["logprobs"]["content"][0]["top_logprobs"].pop(),
        lambda c: top(c)[0].update(id=293),
        lambda c: top(c)[0].update(id=4096),
        lambda c: top(c)[0].update(id=-1),
        lambda c: top(c)[0].update(logprob=0.5),
        lambda c: top(c)[0].update(logprob=float("nan")),
        lambda c: top(c)[0].update(logprob=None),
    ],
)
def test_an_answer_that_is_none_is_refused(change: Any) -> None:
    with pytest.raises((KeyError, IndexError, TypeError, ValueError)):
        read_rows(broken(change), 2, 4096, 2)


# ---------------------------------------------------------------- a server that runs already


@pytest.fixture(scope="module")
def running() -> Any:
    """Our own server over a formula, on the loopback: it gives 100 alternatives at most."""
    import uvicorn

    from hspi.serve.app import Server
    from hspi.serve.batching import Batcher
    from hspi.serve.wire import Vocabulary

    app = Server(Batcher(Formula()), Vocabulary(Letters(), SIZE), "toy", limit=64).app()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not answers(f"http://127.0.0.1:{port}/health"):
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


def test_a_running_server_gives_what_its_engine_computed(running: str, model: Path) -> None:
    adapter = attach(running, "toy", get("vllm-bf16"), model)
    contexts = [np.array([3, 4, 5, 6]), np.array([9, 8, 7])]
    found = adapter.logprobs(contexts, 2)
    for row, context in zip(found, contexts, strict=True):
        np.testing.assert_allclose(row, Formula().logprobs([context], 2)[0], atol=1e-5)
    assert adapter.facts() == {"endpoint": running, "served_name": "toy", "alternatives": str(SIZE)}
    assert adapter.greedy(contexts, 2).shape == (2, 2)


def test_a_server_is_asked_for_no_more_than_it_gives(running: str, model: Path) -> None:
    (model / "config.json").write_text('{"vocab_size": 4000}')  # more than 100 would be refused
    with pytest.raises(EndpointError, match=r"must give at least 20|must answer with log-probabilities"):
        attach(running, "toy", get("vllm-bf16"), model)


def test_the_best_come_as_when_only_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's normaliser depends on how many alternatives are asked for; an audit asks for 20."""

    def moved(self: EndpointAdapter, prompts: list[np.ndarray], count: int) -> np.ndarray:
        rows = np.full((len(prompts), 100), -np.inf, np.float32)
        rows[:, :count] = -1.0 - np.arange(count) / 10 - count * 1e-3
        return rows

    monkeypatch.setattr(EndpointAdapter, "_ask", moved)
    found = EndpointAdapter("http://127.0.0.1:1/v1", "toy", 100, {}, usual=20).logprobs([np.array([1, 2])], 1)[0, 0]
    expected = np.float32(-1.0 - np.arange(100) / 10)
    np.testing.assert_allclose(found[:20], expected[:20] - 0.02, rtol=1e-6)
    np.testing.assert_allclose(found[20:], expected[20:] - 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/v1", "127.0.0.1:8000", "http://user:secret@127.0.0.1/v1", "http://:8000/v1"]
)
def test_a_base_url_must_be_one(url: str, model: Path) -> None:
    with pytest.raises(ConfigError, match="base URL") as refused:
        attach(url, "toy", get("vllm-bf16"), model)
    assert "secret" not in str(refused.value)


def test_nobody_there_is_one_line_of_the_endpoint(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with pytest.raises(EndpointError) as failed:
        attach(f"http://127.0.0.1:{free_port()}/v1", "toy", get("vllm-bf16"), model)
    assert "\n" not in str(failed.value) and "very-secret" not in str(failed.value)


# ---------------------------------------------------------------- processes


TALKATIVE = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def pid_in(log: Path) -> int:
    deadline = time.monotonic() + 20
    while not log.exists() or not log.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(log.read_text().split()[0])


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 15
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_closing_a_server_ends_what_it_started(tmp_path: Path) -> None:
    what = serving.Launch([sys.executable, "-c", TALKATIVE], dict(os.environ))
    server = serving.Server(what, "http://127.0.0.1:9", tmp_path / "log")
    child = pid_in(tmp_path / "log")
    assert is_alive(child)
    server.close()
    assert gone(child)


def test_a_kill_of_the_owner_ends_the_server_and_what_it_started(tmp_path: Path) -> None:
    owner = (
        "import os, sys, time; from pathlib import Path; from hspi.platforms.servers.launch import Launch, Server\n"
        "s = Server(Launch([sys.executable, '-c', sys.argv[1]], dict(os.environ)), '', Path(sys.argv[2]))\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner, TALKATIVE, str(tmp_path / "log")])
    child = pid_in(tmp_path / "log")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(child)


def test_a_server_that_ends_before_it_answers_is_told_by_its_log(tmp_path: Path) -> None:
    what = serving.Launch([sys.executable, "-c", "raise ValueError('no memory is left')"], dict(os.environ))
    with pytest.raises(PlatformError, match="ValueError: no memory is left"):
        serving.Server(what, "http://127.0.0.1:9", tmp_path / "log").wait(seconds=20)


# ---------------------------------------------------------------- the real ones

SMALL = "models: [llama]\nprobes: {seed: 3, length: 16, sets: {text: {size: 6, positions: 2, top_k: 64}}}\n"


def collected(folder: Path, platform: str, *more: str, positions: int = 2, batch: int = 3) -> Signature:
    (folder / "params.yaml").write_text(SMALL.replace("positions: 2", f"positions: {positions}"))
    command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--model", "llama"]
    command += ["--progress", "none", "--batch-size", str(batch)]
    out = folder / f"s{len(list(folder.glob('s*')))}"
    command += ["--params", str(folder / "params.yaml"), "--out", str(out), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_signature(next(out.rglob("*.parquet")))


def checkout(folder: Path) -> Tree:
    """This tree's sources and models, with a log of its own."""
    (folder / "tree" / "data").mkdir(parents=True)
    (folder / "tree" / "data" / "zoo").symlink_to(ROOT / "data" / "zoo")
    (folder / "tree" / "data" / "zoo.dvc").touch()
    tree = Tree(folder / "tree")
    tree.environment["PYTHONPATH"] = str(ROOT / "src")
    return tree


def same(a: Signature, b: Signature) -> bool:
    return (a.topk_logprobs.tobytes(), a.topk_ids.tobytes()) == (b.topk_logprobs.tobytes(), b.topk_ids.tobytes())


def needs(platform: str) -> None:
    if not (can := availability(get(platform))).runnable:
        pytest.skip(can.why_not)


@pytest.mark.slow
def test_llama_cpp_formats_are_distinct_and_repeat_bit_for_bit(tmp_path: Path) -> None:
    needs("llamacpp-q4_0")
    names = ("llamacpp-f32", "llamacpp-q4_0", "torch-fp32")
    found = [collected(tmp_path, name) for name in names]
    assert len({s.topk_logprobs.tobytes() for s in found}) == 3
    assert same(found[1], collected(tmp_path, "llamacpp-q4_0"))
    assert found[0].header.facts["server"] == "llama.cpp" and "version_xllamacpp" in found[0].header.facts
    exact = found[2]
    for s, far in zip(found[:2], (0.01, 1.5), strict=True):
        assert 0 < np.abs(s.topk_logprobs[:, 0] - exact.topk_logprobs[:, 0]).max() < far


@pytest.mark.slow
def test_a_platform_asked_over_http_is_the_platform(tmp_path: Path) -> None:
    """What `hspi serve` computes, labelled through --base-url, equals the signature made in process, bit for bit.

    One prompt and one position at a time: others would be products of other shapes, and fp32 differs by an ulp.
    """
    port = free_port()
    command = ("hspi", "serve", "--platform", "torch-fp32", "--model", "llama", "--port", str(port))
    with checkout(tmp_path).serving(*command, ready=f"http://127.0.0.1:{port}/health"):
        url = ("--base-url", f"http://127.0.0.1:{port}/v1", "--record", '{"engine": "elsewhere", "dtype": "fp32"}')
        over = collected(tmp_path, "torch-fp32-there", *url, positions=1, batch=1)
    assert same(over, collected(tmp_path, "torch-fp32", positions=1, batch=1))
    assert over.header.platform.engine == "elsewhere" and "cpu_model" not in over.header.facts
