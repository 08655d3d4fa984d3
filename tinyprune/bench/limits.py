"""What this GPU can do at best, measured by two kernels that do one thing only.

    copy             for i: out[i] = x[i]                 as many bytes a second as it reads and writes
    multiply-add     for n: x = x · a + b                 as many operations a second as it adds and multiplies

`copy_vectors`: a thread copies four neighbours. `multiply_adds`: a thread has `CHAINS` numbers in registers, and each
is multiplied and added to over and over. A step of a chain waits for the one before, but not for the other chains; and
nothing is read from memory. The other kernels are compared with what these two reach, not with a data sheet. What fits
into the GPU's second-level cache can be copied faster than that.
"""

from __future__ import annotations

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.vectors import load4, store4

THREADS = 256
CHAINS = 8
UNROLLED = 16  # steps of each chain for which the loop is counted once


@kernel(floats, int32, floats, threads=THREADS, hot=True)
def copy_vectors(x, size, out):
    """out = x, flat, of a multiple of 4 entries."""
    i = 4 * cuda.grid(1)
    if i < size:
        a, b, c, d = load4(x, i)
        store4(out, i, a, b, c, d)


@kernel(float32, float32, int32, floats, threads=THREADS, hot=True)
def multiply_adds(a, b, rounds, out):
    """out: of each thread Σ over its chains of what x = 0, 1, … 7 has become after `rounds` · `UNROLLED` steps."""
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
    """out = x: contiguous arrays of a multiple of 4 entries."""
    copy_vectors(blocks(x.size, 4 * THREADS), x, x.size, out)


def multiply_and_add(steps: int, out: DeviceArray) -> None:
    """x = x / 2 + 1 in a thread for each entry of `out`, `steps` times in all its chains together.

    Args:
        steps: a multiple of `CHAINS` · `UNROLLED`, 128. Each is two operations.
        out: whose size is a multiple of `THREADS`; takes what keeps the compiler from leaving all of it out.
    """
    multiply_adds(out.size // THREADS, 0.5, 1.0, steps // (CHAINS * UNROLLED), out)
