"""The GPU's limits, measured by two kernels that do one thing only.

    copy             for i: out[i] = x[i]                 as many bytes a second as it reads and writes
    multiply-add     for n: x = x · a + b                 as many operations a second as it adds and multiplies

`copy_vectors`: a thread copies four neighbours. `multiply_adds`: a thread has `CHAINS` numbers in registers, and
multiplies and adds to each over and over. A step of a chain waits for the previous one, but not for other chains, and
nothing is read from memory. Other kernels are compared with these two, not with a data sheet. What fits into the GPU's
second-level cache can be copied faster.
"""

from __future__ import annotations

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.vectors import load4, store4

THREADS = 256
CHAINS = 8
UNROLLED = 16  # steps of each chain per iteration of the loop


@kernel(floats, int32, floats, threads=THREADS, hot=True)
def copy_vectors(x, size, out):
    """out = x, flat, with a multiple of 4 entries."""
    i = 4 * cuda.grid(1)
    if i < size:
        a, b, c, d = load4(x, i)
        store4(out, i, a, b, c, d)


@kernel(float32, float32, int32, floats, threads=THREADS, hot=True)
def multiply_adds(a, b, rounds, out):
    """out: for each thread, the sum of its chains, which begin with 0, 1, … 7, after `rounds` · `UNROLLED` steps."""
    x = cuda.local.array(CHAINS, float32)
    for chain in range(CHAINS):
        x[chain] = float32(chain)
    for _ in range(rounds):
        for _ in range(UNROLLED):
            for chain in range(CHAINS):
                x[chain] = x[chain] * a + b
    total = float32(0)
    for chain in range(CHAINS):
        total += x[chain]
    out[cuda.grid(1)] = total


def copy(x: DeviceArray, out: DeviceArray) -> None:
    """Copy x to out, contiguous arrays with a multiple of 4 entries."""
    copy_vectors(blocks(x.size, 4 * THREADS), x, x.size, out)


def multiply_and_add(steps: int, out: DeviceArray) -> None:
    """Compute x = x / 2 + 1 in a thread for each entry of `out`, `steps` times in all its chains together.

    `steps` is a multiple of `CHAINS` · `UNROLLED` and the size of `out` one of `THREADS`. Without `out` the compiler
    would remove the work.
    """
    multiply_adds(out.size // THREADS, 0.5, 1.0, steps // (CHAINS * UNROLLED), out)
