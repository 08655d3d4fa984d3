"""The operations of `tinyprune.ops` as kernels for NVIDIA GPUs, written in `numba.cuda`.

    device/                                     how a kernel is compiled and launched; arrays and the GPU's memory
    parts/, products/, attend/                  pieces of kernels, matrix products, the kernels of attention
    operations/                                 the operations

`engine` lists the operations, `tinyprune.kernels.backend` makes the engine.
"""
