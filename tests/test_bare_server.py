"""`hspi collect` on a bare GPU server: torch, transformers, pyarrow and numpy alone, with what those bring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hspi.signatures.schema import read_signature
from hspi.signatures.store import iter_store

# Not pandas: pyarrow looks for it by itself and trips over a name that is there without a module.
ABSENT = (
    *("mlflow", "dvc", "prefect", "optuna", "xgboost", "sklearn", "pydantic", "numba", "matplotlib", "scipy"),
    *("fastapi", "starlette", "openai", "onnxruntime", "openvino", "ctranslate2"),
)

RUN = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
from hspi.cli import main
main({arguments!r})
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer model with the tokenizer of a shipped one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hspi import zoo

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, **shape)).to(torch.bfloat16).save_pretrained(folder)
    zoo.load_tokenizer(zoo.resolve("llama")).save_pretrained(folder)
    return folder


def test_collect_needs_nothing_of_the_pipeline(tiny: Path, tmp_path: Path) -> None:
    arguments = ["collect", "--platform", "torch-bf16", "--model", str(tiny), "--probes", "tokens"]
    arguments += ["--out", str(tmp_path), "--batch-size", "16", "--progress", "none"]
    command = [sys.executable, "-c", RUN.format(absent=ABSENT, arguments=arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = iter_store(tmp_path)
    header = read_signature(path).header
    assert header.platform.id == "torch-bf16" and header.platform.provenance == "real"
    assert header.facts, "facts about the machine travel inside the signature"


@pytest.mark.parametrize("platform", ["cuda-fp32", "cuda-bf16"])
def test_a_gpu_platform_without_a_gpu_is_one_clear_line(platform: str, tmp_path: Path) -> None:
    from hspi.platforms import catalogue, machine

    can = machine.availability(catalogue.get(platform))
    if can.runnable:
        pytest.skip("this machine has an NVIDIA GPU, so there is nothing to refuse")
    command = [sys.executable, "-m", "hspi", "collect", "--platform", platform, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "GPU" in done.stderr
    assert not list(iter_store(tmp_path))


@pytest.mark.gpu
def test_collect_on_the_gpu(tiny: Path, tmp_path: Path) -> None:
    from hspi.platforms import catalogue, machine

    can = machine.availability(catalogue.get("cuda-bf16"))
    if not can.runnable:
        pytest.skip(can.why_not)
    command = [sys.executable, "-m", "hspi", "collect", "--platform", "cuda-bf16", "--model", str(tiny)]
    command += ["--probes", "tokens", "--out", str(tmp_path), "--batch-size", "16", "--progress", "none"]
    subprocess.run(command, check=True)
    (path,) = iter_store(tmp_path)
    assert read_signature(path).header.facts["gpu"]
