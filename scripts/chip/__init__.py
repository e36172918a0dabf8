"""Is the emulated arithmetic that of the chip? To be run where a GPU is; until then silicon is unverified.

cases    inputs by seed, random and adversarial, exact in a number type
chip     a GPU (nvcc or Triton for tiles, cuBLAS for GEMMs), or a simulated one with a plan that it does not tell
compare  bits against `hspi.numerics`, the plan that reproduces a GEMM, golden vectors

One command: `python scripts/silicon.py --out golden`.
"""
