"""The operations of `tinyprune.ops` as kernels for NVIDIA GPUs, written in `numba.cuda`: one operation a file.

`jit` says how kernels are compiled and launched, `array` what an array in the GPU's memory is, `memory` where it lives.
`tinyprune.kernels.backend` lists the operations.
"""
