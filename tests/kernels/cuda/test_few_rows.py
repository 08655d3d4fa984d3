"""The kernels for few rows, with what is added at the end."""

from unittest import mock

import numpy as np

from tinyprune.kernels.cuda import few_rows
from tinyprune.kernels.cuda import matmul as door
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal


def check(module, M=2, K=70, N=35):
    """More than one block, more k than threads along it."""
    a, b, bias = normal((M, K), (K, N), (N,))
    expected = a.astype(np.float64) @ b + bias
    with mock.patch.object(door, "FEW_ROWS", module.FEW_ROWS):
        assert_close(door.matmul(to_device(a), to_device(b), bias=to_device(bias)), expected)
        got = door.matmul(to_device(a), to_device(b.T.copy()), transpose_b=True, bias=to_device(bias))
        assert_close(got, expected)


def test_equals_numpy(place, both_orders):
    check(few_rows)
    for M, K, N in ((1, 1, 1), (8, 3, 9), (1, 0, 3)):
        check(few_rows, M, K, N)


def test_rows_that_are_some_of_others(place):
    x, W = normal((12, 9), (9, 5))
    for rows in (slice(2, 5), slice(2, 10)):
        assert_close(door.matmul(to_device(x)[rows, 1:6], to_device(W)[2:7]), x[rows, 1:6].astype(float) @ W[2:7])
