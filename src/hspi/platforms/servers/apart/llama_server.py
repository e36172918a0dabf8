"""Runs llama.cpp's HTTP server, as the `xllamacpp` wheel has compiled it in. For the environment .envs/llama-cpp."""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--name", default="model", help="of the model in the API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=8, help="sequences that share a batch")
    parser.add_argument("--context", type=int, default=512, help="tokens of each slot")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--flash-attention", choices=["on", "off"], default="off")
    parser.add_argument("--cache-type", default="f16", help="number type of the key-value cache")
    a = parser.parse_args()

    p = xllamacpp.CommonParams()
    p.model.path, p.model_alias, p.hostnames, p.port = a.model, {a.name}, [a.host], a.port
    p.n_parallel, p.n_ctx = a.slots, a.slots * a.context
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = a.threads
    p.flash_attn_type = getattr(
        xllamacpp.llama_flash_attn_type,
        "LLAMA_FLASH_ATTN_TYPE_ENABLED" if a.flash_attention == "on" else "LLAMA_FLASH_ATTN_TYPE_DISABLED",
    )
    p.cache_type_k = p.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{a.cache_type.upper()}")
    p.cache_prompt = False  # the same prompt twice is to be computed twice, in the same way
    server = xllamacpp.Server(p)
    print(f"{server.listening_address}  {xllamacpp.get_system_info()}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
