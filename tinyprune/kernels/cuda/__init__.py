"""The operations of `tinyprune.ops` as kernels for NVIDIA GPUs, written in `numba.cuda`.

    device/                                     how a kernel is compiled and launched; arrays and the GPU's memory
    parts/, products/, attend/                  pieces of kernels, matrix products, the kernels of attention
    layers/, vocabulary/, updates/              the operations, one a file, named as in `tinyprune.ops`

`tinyprune.kernels.backend` lists the operations.
"""
