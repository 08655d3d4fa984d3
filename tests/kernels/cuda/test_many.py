"""Tables of arrays."""

import numpy as np

from tinyprune.kernels.cuda.array import empty, to_device, to_host
from tinyprune.kernels.cuda.jit import KERNELS, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.many import table_of, tables

from .compare import normal


def test_each_block_finds_its_array(place):
    @kernel(tables, int32, floats, threads=4)
    def copy(arrays, n, out):
        x = arrays[cuda.blockIdx.x]
        if cuda.threadIdx.x < n:
            out[cuda.blockIdx.x * n + cuda.threadIdx.x] = x[cuda.threadIdx.x]

    KERNELS.pop()
    x, y = normal((3,), (6,))
    out = empty((3, 3))
    copy(3, table_of([to_device(x), to_device(y)[3:], to_device(y)[:3]]), 3, out)
    assert np.array_equal(to_host(out), [x, y[3:], y[:3]])
