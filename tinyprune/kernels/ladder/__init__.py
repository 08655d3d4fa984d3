"""The road from a plain loop to the kernels in `tinyprune.kernels.cpu`, rung by rung, each a few lines that can be run.

`matmul.RUNGS` and `attention.RUNGS` hold the functions by name, in climbing order; all of one ladder take the same
arguments and return the same. A rung's docstring says what it changes and why that helps. Nothing is compiled before it
is called, and none of it is used for training: `tinyprune bench ladder` times it.

`cuda_matmul.RUNGS` and `cuda_attention.RUNGS` are the same for a GPU; they need `numba.cuda`, or its simulator. `cuda`
compiles them without a GPU, and times them on one.
"""
