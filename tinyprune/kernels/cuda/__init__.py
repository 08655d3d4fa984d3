"""The operations of `tinyprune.ops` as kernels for NVIDIA GPUs, written in `numba.cuda`: one file a subject.

    products/, attend/      the kernels of matrix products and of attention
    sums                    what the kernels of several operations share, as `dropout` has its mask
    arguments               what the operations check before a launch
    device/, compiled       arrays, the GPU's memory, and how a kernel is compiled and launched
    emulator/               executes compiled kernels without a GPU

`engine` lists the operations, `tinyprune.kernels.backend` makes the engine.
"""
