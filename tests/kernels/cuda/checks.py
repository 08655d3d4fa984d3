"""A quick test of each module whose kernels have barriers, for the module itself and for copies without one of them."""

from functools import partial
from unittest import mock

import numpy as np

from tinyprune.kernels.cuda.attend import forward
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.jit import KERNELS, cuda, float32, floats, kernel
from tinyprune.kernels.cuda.operations import attention
from tinyprune.kernels.cuda.products import primitives

from .attention_case import WIDTHS, case, installed, quarters
from .compare import assert_close, assert_equal_to_textbook, normal, on_device

THREADS = 128


def block_sums(module):
    """Sums and maxima over a block, each twice in a row with the same scratch: every thread is told all of them."""
    block_sum, block_max = module.block_sum, module.block_max

    def all_four(x, out):
        scratch = cuda.shared.array(THREADS, float32)
        i = cuda.threadIdx.x
        out[i] = block_sum(x[i], scratch)
        out[THREADS + i] = block_sum(x[i] * x[i], scratch)
        out[2 * THREADS + i] = block_max(x[i], scratch)
        out[3 * THREADS + i] = block_max(-x[i], scratch)

    (x,) = normal((THREADS,))
    out = empty((4, THREADS))
    kernel(floats, floats, threads=THREADS)(all_four)(1, to_device(x), out)
    KERNELS.pop()
    expected = np.array([x.sum(dtype=float), (x * x).sum(dtype=float), x.max(), (-x).max()])
    np.testing.assert_allclose(to_host(out), np.repeat(expected[:, None], THREADS, 1), rtol=1e-5)


def column_sums(module, shape=(70, 35)):
    """More than one run of rows, more than one block of columns."""
    (x,) = normal(shape)
    assert_close(module.column_sums(to_device(x)), x.sum(0, dtype=float))


def row_dots(module, shape=(3, 7, 2, 11)):
    """More rows than a block has lines, more numbers than lanes; y of the shape of x, and the same for all rows."""
    x, y, same = normal(shape, shape, shape[-2:])
    for other in (y, same):
        expected = 0.5 * (x.astype(np.float64) * other).sum(-1)
        assert_close(module.row_dots(to_device(x), to_device(other), 0.5), expected)
    pairs = (x, same), (x[1:], -same)
    got = module.two_row_dots(*(to_device(each) for pair in pairs for each in pair))
    assert_close(got, [(each.astype(np.float64) * other).sum(-1) for each, other in pairs])


def sums(module):
    for check in (block_sums, column_sums, row_dots):
        check(module)


def norms(module):
    """More features than threads, and more rows than a block of `parameter_gradients` has lines."""
    for shape in ((2, 3, 130), (9, 3)):
        x, dout, scale, bias = normal(shape, shape, shape[-1:], shape[-1:])
        assert_equal_to_textbook("layernorm", (x + 2, scale, bias), dout, module=module)
        assert_equal_to_textbook("rmsnorm", (x + 2, scale), dout, module=module)


def few_rows(module, M=2, K=70, N=35):
    """More than one block, more k than threads along it."""
    a, b, bias = normal((M, K), (K, N), (N,))
    expected = a.astype(np.float64) @ b + bias
    with mock.patch.object(primitives, "FEW_ROWS", module.FEW_ROWS):
        for there in (to_device(b), to_device(b.T.copy()).T):
            assert_close(primitives.matmul(to_device(a), there, bias=to_device(bias)), expected)


def product(module):
    """Three strips, more than one tile."""
    a, b = normal((9, 40), (40, 67))
    with mock.patch.object(primitives, "PRODUCTS", module.PRODUCTS):
        assert_close(primitives.matmul(to_device(a), to_device(b)), a.astype(np.float64) @ b)


def attend_forward(module):
    """More than one tile of everything, with the tiles of every width; so is the next."""
    with installed({"forward": quarters("forward", module)}):
        for width in WIDTHS:
            c = case(width)
            try:
                out, cache = attention.attention_forward(*map(on_device, c.x), **c.options, rng=c.rng())
            except ValueError as error:  # a logarithm, in Python, of what should have been a sum of weights
                raise AssertionError from error
            assert_close((out, cache.o), (c.expected["out"], c.expected["o"]))


def query_gradients_and_delta(saved, c):
    saved = saved._replace(delta=empty(saved.lse.shape))  # others read theirs
    return attention.query_gradients(saved, c), saved.delta


BACKWARD = {
    "queries_backward": [(query_gradients_and_delta, ["dq", "delta"])],
    "keys_backward": [(attention.key_gradients, ["dk", "dv", "du"]), (attention.persistent_gradients, ["dpk", "dpv"])],
    "distances_backward": [(attention.distance_gradients, ["dr", "dw"])],
}


def attend_backward(name, module):
    with installed({name: quarters(name, module)}):
        for width in WIDTHS:
            c = case(width)
            for gradients, names in BACKWARD[name]:
                assert_close(gradients(*c.gradients), [c.expected[name] for name in names])


def attend_scores(module):
    """The functions that the four have in common, in the first of them."""
    with mock.patch.object(forward, "make_scores", module.make_scores):
        attend_forward(forward)


CHECKS = {
    "attend.distances": partial(attend_backward, "distances_backward"),
    "attend.forward": attend_forward,
    "attend.keys": partial(attend_backward, "keys_backward"),
    "attend.queries": partial(attend_backward, "queries_backward"),
    "attend.sums": attend_scores,
    "operations.norms": norms,
    "parts.sums": sums,
    "products.few_rows": few_rows,
    "products.product": product,
}
