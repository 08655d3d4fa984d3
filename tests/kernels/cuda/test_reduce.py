"""Sums and maxima over a block, each twice in a row with the same scratch."""

import numpy as np

from tinyprune.kernels.cuda import reduce
from tinyprune.kernels.cuda.array import empty, to_device, to_host
from tinyprune.kernels.cuda.jit import KERNELS, cuda, float32, floats, kernel

from .compare import normal

THREADS = 128


def check(module):
    """Every thread is told both sums and both maxima."""
    block_sum, block_max = module.block_sum, module.block_max

    def both(x, out):
        scratch = cuda.shared.array(THREADS, float32)
        i = cuda.threadIdx.x
        out[i] = block_sum(x[i], scratch)
        out[THREADS + i] = block_sum(x[i] * x[i], scratch)
        out[2 * THREADS + i] = block_max(x[i], scratch)
        out[3 * THREADS + i] = block_max(-x[i], scratch)

    (x,) = normal((THREADS,))
    out = empty((4, THREADS))
    kernel(floats, floats, threads=THREADS)(both)(1, to_device(x), out)
    KERNELS.pop()
    expected = np.array([x.sum(dtype=float), (x * x).sum(dtype=float), x.max(), (-x).max()])
    np.testing.assert_allclose(to_host(out), np.repeat(expected[:, None], THREADS, 1), rtol=1e-5)


def test_every_thread_is_told(place, both_orders):
    check(reduce)


def test_nan_is_not_lost(place):
    reduce_max = reduce.block_max

    def run(x, out):
        scratch = cuda.shared.array(THREADS, float32)
        out[cuda.threadIdx.x] = reduce_max(x[cuda.threadIdx.x], scratch)

    for where in (0, 5, 64, 127):
        (x,) = normal((THREADS,))
        x[where] = np.nan
        out = empty(THREADS)
        kernel(floats, floats, threads=THREADS)(run)(1, to_device(x), out)
        KERNELS.pop()
        assert np.isnan(to_host(out)).all()
