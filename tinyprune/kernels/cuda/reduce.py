"""Sums over the threads of a block.

Halves of the threads take what the other halves found: 128 add what 128 others have, then 64, 32, … 1. Each half waits
for the one before. The order of the sum depends on the number of threads alone, so the result is the same every time.
"""

from __future__ import annotations

from tinyprune.kernels.cuda.jit import cuda, device


@device
def block_sum(value, scratch):
    """Σ value over all threads of the block (along x alone, a power of 2); every thread is told.

    scratch: shared memory, an entry for each thread. It may be used again at once.
    """
    x = cuda.threadIdx.x
    scratch[x] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()  # the half before has written what this one takes
        if x < half:
            scratch[x] += scratch[x + half]
        half //= 2
    cuda.syncthreads()  # the sum is there before anyone reads it
    total = scratch[0]
    cuda.syncthreads()  # everyone has read it before its place is used again
    return total


@device
def block_max(value, scratch):
    """The largest value of all threads of the block, as `block_sum`; NaN if one is NaN."""
    x = cuda.threadIdx.x
    scratch[x] = value
    half = cuda.blockDim.x // 2
    while half > 0:
        cuda.syncthreads()  # the half before has written what this one takes
        if x < half:
            other = scratch[x + half]
            # a NaN is not equal to itself, and not larger than anything
            if other > scratch[x] or other != other:
                scratch[x] = other
        half //= 2
    cuda.syncthreads()  # the maximum is there before anyone reads it
    highest = scratch[0]
    cuda.syncthreads()  # everyone has read it before its place is used again
    return highest
