"""Softmax cross-entropy, fused with its gradient. See `tinyprune.ops.cross_entropy`.

    for each row: top = max logits;  s = Σ exp(logits − top)
                  loss += (log s + top − logits[target]) / R;  dlogits = (exp(logits − top) / s − 1[v = target]) / R

One block for each row. The first pass over the row finds top and s together: each thread keeps its largest logit so far
and the sum that belongs to it, and rescales the sum at each larger logit (Milakov & Gimelshein 2018). The second pass
writes the gradient, over the logits if allowed. So logits are read twice, the second time from the cache if the current
rows fit there, and written once; the textbook makes five arrays of that size.

A thread loads four logits before it computes with the first, so that it waits for memory once, not four times. The
compiler cannot do that itself, since what is written might be what is read next.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.embedding import numbers
from tinyprune.kernels.cuda.gathers import scaled
from tinyprune.kernels.cuda.sums import block_max, block_sum, row_sums
from tinyprune.ops.cross_entropy import check_targets

THREADS = 128
FOUR = 4 * THREADS
LEAST = np.finfo(np.float32).min  # not −inf, since −inf − (−inf) is NaN


@device
def four(x, at):
    """Return x[at] and three more entries, each as far apart as the block is wide."""
    return x[at], x[at + THREADS], x[at + 2 * THREADS], x[at + 3 * THREADS]


@device
def largest_and_sum(x, at, V, scratch):
    """Return top = max x, and Σ exp(x − top), of the V entries from `at`, to every thread of the block.

    With a NaN or +inf among them the sum is NaN, as is the difference from top.
    """
    thread = cuda.threadIdx.x
    top, total = LEAST, float32(0)
    whole = V // FOUR * FOUR
    for v in range(thread, whole, FOUR):
        a, b, c, d = four(x, at + v)
        higher = max(max(a, b), max(c, d), top)
        total *= math.exp(top - higher)
        total += (math.exp(a - higher) + math.exp(b - higher)) + (math.exp(c - higher) + math.exp(d - higher))
        top = higher
    for v in range(whole + thread, V, THREADS):
        higher = max(x[at + v], top)
        total = total * math.exp(top - higher) + math.exp(x[at + v] - higher)
        top = higher
    row_top = block_max(top, scratch)
    return row_top, block_sum(total * math.exp(top - row_top), scratch)


@kernel(floats, ints, int32, float32, floats, floats, threads=THREADS)
def losses_and_gradient(logits, targets, V, share, losses, dlogits):
    """Compute losses (R,), and dlogits (R, V), which may be `logits` itself; share = 1 / R."""
    scratch = cuda.shared.array(THREADS, float32)
    row, thread = cuda.blockIdx.x, cuda.threadIdx.x
    at, target = row * V, targets[row]
    of_target = logits[at + target]
    top, total = largest_and_sum(logits, at, V, scratch)
    if thread == 0:
        losses[row] = math.log(total) - (of_target - top)
    factor = share / total
    whole = V // FOUR * FOUR
    for v in range(thread, whole, FOUR):
        a, b, c, d = four(logits, at + v)
        dlogits[at + v] = math.exp(a - top) * factor
        dlogits[at + v + THREADS] = math.exp(b - top) * factor
        dlogits[at + v + 2 * THREADS] = math.exp(c - top) * factor
        dlogits[at + v + 3 * THREADS] = math.exp(d - top) * factor
    for v in range(whole + thread, V, THREADS):
        dlogits[at + v] = math.exp(logits[at + v] - top) * factor
    # overwritten by the thread that wrote it
    if thread == target % THREADS:
        dlogits[at + target] = (math.exp(of_target - top) / total - float32(1)) * share


@kernel(floats, int32, floats, threads=THREADS)
def log_probabilities(logits, V, out):
    """Compute out (R, V) = logits − log Σ exp(logits): a block for each row."""
    scratch = cuda.shared.array(THREADS, float32)
    at = cuda.blockIdx.x * V
    top, total = largest_and_sum(logits, at, V, scratch)
    log_total = math.log(total)
    for v in range(cuda.threadIdx.x, V, THREADS):
        out[at + v] = (logits[at + v] - top) - log_total


def log_softmax(logits: DeviceArray) -> DeviceArray:
    """Return log p over the last axis: `ops.log_softmax` for float32."""
    check_floats(logits=logits)
    V = logits.shape[-1]
    if V == 0:
        raise ValueError(f"logits must have at least one entry in a row, got shape {logits.shape}")
    out = empty(logits.shape)
    log_probabilities(out.size // V, contiguous(logits), V, out)
    return out


def cross_entropy_forward(
    logits: DeviceArray, targets: NDArray, *, overwrite: bool = False
) -> tuple[DeviceArray, tuple]:
    """Mean negative log-probability of `targets`, integers in main memory: `ops.cross_entropy_forward` for float32.

    With `overwrite` the gradient is written over `logits`, if these are contiguous. The loss has shape () in the GPU's
    memory; `float` waits for it.
    """
    check_floats(logits=logits)
    check_targets(logits, targets)
    R, V = targets.size, logits.shape[-1]
    rows = contiguous(logits)
    dlogits = rows if overwrite else empty(logits.shape)
    losses = empty(R)
    losses_and_gradient(R, rows, numbers(targets), V, np.float32(1 / R), losses, dlogits)
    return row_sums(losses.reshape(1, R), R).reshape(()), (dlogits,)


def cross_entropy_backward(dout: float | DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `cross_entropy_forward` with respect to `logits`, as `ops.cross_entropy_backward`.

    If `dout` is the number 1, the result is the array that forward has made, not a copy: do not modify it. `dout` may
    also have shape () in the GPU's memory.
    """
    (dlogits,) = cache
    if isinstance(dout, DeviceArray):
        check_gradient(dout, ())
        return scaled(dlogits, dout, dlogits.size)
    return dlogits if dout == 1 else scaled(dlogits, np.full(1, dout, np.float32), dlogits.size)
