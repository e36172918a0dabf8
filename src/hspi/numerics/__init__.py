"""GPU arithmetic in software, bit by bit: emulated, and not yet compared with silicon by this project.

formats        fp16, bf16, tf32 and fp8 as records, rounding to them
architectures  a record for each (architecture, input type) of a matrix unit; GPUs and who shares an arithmetic
plans          KernelPlan: the K schedule of a GEMM kernel
reference      one dot product at a time, in exact rational arithmetic
matmul         the fast twin; kernels (packing and the general case) and generated (the fast case) are its loops
"""
