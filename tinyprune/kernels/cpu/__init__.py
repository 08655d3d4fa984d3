"""The operations of `tinyprune.ops`, compiled by Numba for the CPU: one operation a file, as there.

`jit` says how kernels are compiled, `simd` and `tiles` which vector instructions they are written in, `workspace` where
their results live. `engine` lists the operations.

Several Python threads may call them at the same time where Numba's threading layer is OpenMP or TBB; its last resort,
workqueue, ends the process then.
"""

from tinyprune.kernels.cpu.jit import forget_outdated

forget_outdated()
