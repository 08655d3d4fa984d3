"""A quick test of each group of kernels that have barriers: more than one round of every loop, more than one tile."""

import math
from functools import partial

import numpy as np

from tinyprune.kernels.cuda import sums
from tinyprune.kernels.cuda.device.array import to_device
from tinyprune.kernels.cuda.products import primitives

from . import attention_case
from .compare import assert_close, assert_equal_to_textbook, normal


def column_sums(shape=(1100, 35)):
    """More than one run of rows, more than one block of columns."""
    (x,) = normal(shape)
    assert_close(primitives.column_sums(to_device(x)), x.sum(0, dtype=float))


def row_dots(shape=(3, 7, 2, 11)):
    """More rows than a block has lines, more numbers than lanes; y of the shape of x, and the same for all rows."""
    x, y, same = normal(shape, shape, shape[-2:])

    def dots(x, other):
        return (x.astype(np.float64) * other).sum(-1).reshape(math.prod(x.shape[:-2]), x.shape[-2]).T

    for other in (y, same):
        expected = 0.5 * dots(x, other)
        assert_close(sums.row_dots((to_device(x), to_device(other)), factor=0.5), [expected])
    pairs = (x, same), (x[1:], -same)
    got = sums.row_dots(*(tuple(map(to_device, pair)) for pair in pairs))
    assert_close(got, [dots(*pair) for pair in pairs])


def norms():
    """More features than threads, and more rows than a block of `parameter_gradients` has lines."""
    for shape in ((2, 3, 130), (9, 3)):
        x, dout, scale, bias = normal(shape, shape, shape[-1:], shape[-1:])
        assert_equal_to_textbook("layernorm", (x + 2, scale, bias), dout)
        assert_equal_to_textbook("rmsnorm", (x + 2, scale), dout)


def cross_entropy():
    """More logits than a block has threads."""
    (logits,) = normal((3, 1100))
    assert_equal_to_textbook("cross_entropy", (logits, np.array([5, 900, 1])), 1.0)


def products():
    """Few rows, and three strips of more than one tile, of both layouts."""
    for M, K, N in ((2, 70, 35), (9, 40, 67)):
        a, b, bias = normal((M, K), (K, N), (N,))
        for there in (to_device(b), to_device(b.T.copy()).T):
            assert_close(primitives.matmul(to_device(a), there, bias=to_device(bias)), a.astype(np.float64) @ b + bias)


def attention(Dh, T=66, M=4):
    """More than one tile of queries, keys, persistent vectors and distances."""
    attention_case.assert_equal_to_textbook(
        B=1, H=1, T=T, M=M, Dh=Dh, N=33, gate=(0.7,), span=50, dropout=0.2, scale=1.5
    )


def launched(run, emulator):
    """The kernels that `run` launches, with the counts of these launches alone."""
    for kernel in emulator.kernels.values():
        kernel.launches, kernel.counts[:] = 0, 0
    run()
    return [kernel for kernel in emulator.kernels.values() if kernel.launches]


CHECKS = {f"attention, width {Dh + 1}": partial(attention, Dh) for Dh in (15, 31, 63)}
CHECKS |= {"sums of columns": column_sums, "sums of rows": row_dots, "norms": norms}
CHECKS |= {"cross entropy": cross_entropy, "products": products}
