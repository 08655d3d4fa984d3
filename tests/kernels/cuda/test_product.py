"""The tiled kernels of the matrix product: two strips in turn, and the sums of several parts."""

from unittest import mock

import numpy as np
import pytest

from tinyprune.kernels.cuda import matmul as door
from tinyprune.kernels.cuda import product
from tinyprune.kernels.cuda.arithmetic import positive
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal


def check(module, layouts=((True, False),)):
    """Three strips, more than one tile."""
    a, b = normal((9, 40), (40, 67))
    with mock.patch.object(door, "PRODUCTS", module.PRODUCTS):
        for a_along_k, b_along_k in layouts:
            given = (a if a_along_k else a.T.copy()), (b.T.copy() if b_along_k else b)
            got = door.matmul(*map(to_device, given), transpose_a=not a_along_k, transpose_b=b_along_k)
            assert_close(got, a.astype(np.float64) @ b)


def test_every_layout(place, both_orders):
    check(product, product.LAYOUTS)


@pytest.mark.parametrize("x", [2.0, -0.0, -2.0, np.inf, -np.inf, np.nan])
def test_positive_part(place, x):
    if place == "gpu":
        pytest.skip("a function of kernels")
    assert np.array_equal(positive(np.float32(x)), np.maximum(x, 0), equal_nan=True)
