"""The platforms that hspi knows by name, as records. Which of them are one class is measured, never declared here."""

from __future__ import annotations

from typing import Any

from hspi.errors import UnknownName
from hspi.platforms.record import Platform
from hspi.platforms.virtual.catalogue import VIRTUAL, family

# oneDNN, ATen and MKL each choose code paths by themselves, so a cap tells all three. MKL obeys
# MKL_ENABLE_INSTRUCTIONS on Intel CPUs alone; on an AMD EPYC it changed no bit, and MKL_CBWR knew COMPATIBLE only.
AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}
AVX512_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
MKL_SSE = {"MKL_CBWR": "COMPATIBLE"}
INTEL_ONLY = "MKL heeds its part of the cap on Intel CPUs alone"
TORCH = ("torch", "transformers")
ONNX = ("onnx", "onnxscript", *TORCH)  # what the export needs


def _torch(id: str, **values: Any) -> Platform:
    return Platform(**{"id": id, "engine": "pytorch", "needs_packages": TORCH} | values)


def _capped(id: str, isa: str, env: dict[str, str], **values: Any) -> Platform:
    note = INTEL_ONLY if "MKL_ENABLE_INSTRUCTIONS" in env else ""
    return _torch(id, provenance="capped", isa_cap=isa, env=env, note=note, **values)


PYTORCH = (
    _torch("torch-fp32"),
    _torch("torch-fp32-eager", attention="eager"),
    _torch("torch-fp32-compiled", compile=True),
    _torch("torch-fp32-high", options={"matmul_precision": "high"}),
    _torch("torch-fp32-medium", options={"matmul_precision": "medium"}),
    _torch("torch-fp32-strict", env={"MKL_CBWR": "AUTO,STRICT"}),
    _capped("torch-fp32-avx2", "avx2", AVX2, needs_cpu=("avx2",)),
    _capped("torch-fp32-sse", "sse", SSE),
    _capped("torch-fp32-mkl-sse", "mkl sse2", MKL_SSE),
    _torch("torch-bf16", dtype="bf16"),
    _torch("torch-bf16-eager", dtype="bf16", attention="eager"),
    _torch("torch-bf16-compiled", dtype="bf16", compile=True),
    _torch("torch-bf16-amx", dtype="bf16", env=AMX, needs_cpu=("amx_bf16",)),
    _capped("torch-bf16-avx512bf16", "avx512_bf16", AVX512_BF16, dtype="bf16", needs_cpu=("avx512_bf16",)),
    _capped("torch-bf16-avx512", "avx512", AVX512, dtype="bf16", needs_cpu=("avx512bw",)),
    _capped("torch-bf16-avx2", "avx2", AVX2, dtype="bf16", needs_cpu=("avx2",)),
    _capped("torch-bf16-sse", "sse", SSE, dtype="bf16"),
    _torch("torch-fp16", dtype="fp16"),
    _torch("torch-fp16-eager", dtype="fp16", attention="eager"),
)


def _quantized(id: str, quantization: str, quantizer: str = "", package: str = "", **values: Any) -> Platform:
    """A weight format of a library; `quantizer` where its name is not the platform's."""
    needed = (*TORCH, package) if package else TORCH
    options = {"quantizer": quantizer or id}
    return _torch(id, quantization=quantization, options=options, needs_packages=needed, **values)


def _torchao(id: str, quantization: str, **values: Any) -> Platform:
    return _quantized(id, quantization, package="torchao", extra="torchao", **values)


def _quanto(id: str, quantization: str) -> Platform:
    return _quantized(id, quantization, package="optimum.quanto", extra="quanto")


def _bitsandbytes(id: str, quantization: str) -> Platform:
    return _quantized(id, quantization, package="bitsandbytes", extra="bitsandbytes")


def _emulated(rounder: str, package: str) -> Platform:
    return _quantized(
        f"emulated-{rounder}", rounder, rounder, package, extra="emulated", provenance="emulated",
        note="weights rounded to the format, then used as the fp32 numbers that they are",
    )  # fmt: skip


QUANTIZED = (
    _quantized("torch-int8-x86", "int8"),
    _quantized("torch-int8-qnnpack", "int8"),
    _torchao("torchao-int8wo", "int8-weights"),
    _torchao("torchao-int8wo-bf16", "int8-weights", quantizer="torchao-int8wo", dtype="bf16"),
    _torchao("torchao-int8dyn", "int8"),
    _torchao("torchao-int4wo", "int4-weights"),
    _torchao("torchao-8da4w", "int8-int4-weights"),
    _torchao("torchao-fp8wo", "fp8-weights"),
    _quanto("quanto-int8", "int8-weights"),
    _quanto("quanto-fp8", "fp8-weights"),
    _bitsandbytes("bitsandbytes-nf4", "nf4-weights"),
    _bitsandbytes("bitsandbytes-fp4", "fp4-weights"),
    _quantized("hqq-int4", "int4-weights", package="hqq", extra="hqq"),
    _emulated("fp8-e4m3", "ml_dtypes"),
    _emulated("fp8-e3m4", "ml_dtypes"),
    _emulated("mxint8", "gfloat"),
    _emulated("mxfp4", "gfloat"),
)


def _onnx(id: str, **values: Any) -> Platform:
    return Platform(id=id, engine="onnx", needs_packages=("onnxruntime", *ONNX), extra="onnx", **values)


def _openvino(id: str, **values: Any) -> Platform:
    return Platform(id=id, engine="openvino", needs_packages=("openvino", *ONNX), extra="openvino,onnx", **values)


def _ct2(id: str, **values: Any) -> Platform:
    return Platform(id=id, engine="ctranslate2", needs_packages=("ctranslate2", *TORCH), extra="ctranslate2", **values)


ONEDNN_AVX2: dict[str, Any] = {"provenance": "capped", "isa_cap": "avx2", "needs_cpu": ("avx2",)}
CT2_AVX2 = ONEDNN_AVX2 | {"env": {"CT2_FORCE_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}

OTHER_ENGINES = (
    _onnx("ort-fp32"),
    _onnx("ort-fp32-plain", options={"optimize": False}),
    _onnx("ort-int8", quantization="int8"),
    _onnx("ort-int4", quantization="int4-weights"),
    _openvino("openvino-fp32"),
    _openvino("openvino-fp32-avx2", env={"ONEDNN_MAX_CPU_ISA": "AVX2"}, **ONEDNN_AVX2),
    _openvino("openvino-bf16", dtype="bf16", needs_cpu=("avx512_bf16",)),
    _openvino("openvino-fp16", dtype="fp16", needs_cpu=("avx512_fp16",)),
    _ct2("ct2-fp32"),
    _ct2("ct2-fp32-avx2", **CT2_AVX2),
    _ct2("ct2-fp32-mkl", env={"CT2_USE_MKL": "1"}),
    _ct2("ct2-int8", quantization="int8"),
    _ct2("ct2-int8-avx2", quantization="int8", **CT2_AVX2),
    _ct2("ct2-int8-mkl", quantization="int8", env={"CT2_USE_MKL": "1"}),
)


def _vllm(id: str, **values: Any) -> Platform:
    return Platform(**{"id": id, "engine": "vllm", "attention": "paged"} | values)


VLLM = (
    _vllm("vllm-fp32"),
    _vllm("vllm-fp32-compiled", compile=True),
    _vllm("vllm-bf16", dtype="bf16"),
    _vllm("vllm-bf16-compiled", dtype="bf16", compile=True),
    _vllm("vllm-bf16-fp8kv", dtype="bf16", kv_cache="fp8"),
    _vllm("vllm-fp16", dtype="fp16"),
)


def _llama_cpp(format: str, **values: Any) -> Platform:
    """Weights in a GGUF format, keys and values in float16 (its default). Activations are rounded as the weights are,
    to blocks of 8 bits where those are quantized."""
    plain: dict[str, Any] = {"id": f"llamacpp-{format}", "engine": "llama.cpp", "options": {"gguf": format}}
    plain |= {"attention": "eager", "kv_cache": "fp16", "needs_cpu": ("avx2", "fma", "f16c")}
    note = "llama.cpp's server as the xllamacpp wheel has it: compiled for AVX2"
    return Platform(**plain | {"note": note} | values)


LLAMA_CPP = (
    _llama_cpp("f32"),
    _llama_cpp("f32", id="llamacpp-f32-kv32", kv_cache="none"),
    _llama_cpp("f32", id="llamacpp-f32-flash", attention="flash"),
    _llama_cpp("f16", dtype="fp16"),
    _llama_cpp("bf16", dtype="bf16"),
    _llama_cpp("q8_0", quantization="q8_0"),
    _llama_cpp("q4_0", quantization="q4_0"),
)


def _cuda(id: str, dtype: str, **values: Any) -> Platform:
    return _torch(id, device="cuda", dtype=dtype, **values)


def _kernels(dtype: str) -> tuple[Platform, ...]:
    """The attention kernels and switches that a 16-bit type has on an NVIDIA GPU."""
    name = f"cuda-{dtype}"
    return (
        _cuda(name, dtype),
        _cuda(f"{name}-eager", dtype, attention="eager"),
        _cuda(f"{name}-math", dtype, options={"sdpa": "MATH"}),
        _cuda(f"{name}-efficient", dtype, options={"sdpa": "EFFICIENT_ATTENTION"}),
        _cuda(f"{name}-flash", dtype, options={"sdpa": "FLASH_ATTENTION"}),
        _cuda(f"{name}-cudnn", dtype, options={"sdpa": "CUDNN_ATTENTION"}),
        _cuda(f"{name}-compiled", dtype, compile=True),
        _cuda(f"{name}-full-reduction", dtype, options={"reduced_precision": False}),
    )


DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

CUDA = (
    _cuda("cuda-fp32", "fp32"),
    _cuda("cuda-fp32-eager", "fp32", attention="eager"),
    _cuda("cuda-fp32-compiled", "fp32", compile=True),
    _cuda("cuda-tf32", "fp32", options={"matmul_precision": "high"}),
    *_kernels("bf16"),
    *_kernels("fp16"),
    _cuda("cuda-bf16-deterministic", "bf16", env=DETERMINISTIC, options={"deterministic": True}),
    _cuda("cuda-bf16-cublaslt", "bf16", options={"blas": "cublaslt"}),
    _torchao("cuda-int8wo", "int8-weights", quantizer="torchao-int8wo", device="cuda", dtype="bf16"),
    _torchao("cuda-int8dyn", "int8", quantizer="torchao-int8dyn", device="cuda", dtype="bf16"),
    _torchao("cuda-fp8", "fp8", quantizer="torchao-fp8dyn", device="cuda", dtype="bf16"),
)

CATALOGUE: dict[str, Platform] = {
    p.id: p for p in (*PYTORCH, *QUANTIZED, *OTHER_ENGINES, *VLLM, *LLAMA_CPP, *CUDA, *VIRTUAL)
}


def get(id: str) -> Platform:
    """The platform of that name; raises UnknownName."""
    if id not in CATALOGUE:
        families = {f"{f}-*" if (f := family(p)) != p.id else f for p in CATALOGUE.values()}
        raise UnknownName("platform", id, families)
    return CATALOGUE[id]
