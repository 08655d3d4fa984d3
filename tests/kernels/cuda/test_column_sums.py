"""Column sums against NumPy."""

import numpy as np
import pytest

from tinyprune.kernels.cuda import column_sums
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal


def check(module, shape=(70, 35)):
    """More than one run of rows, more than one block of columns."""
    (x,) = normal(shape)
    assert_close(module.column_sums(to_device(x)), x.sum(0, dtype=float))


@pytest.mark.parametrize("shape", [(70, 35), (1, 1), (0, 3), (3, 0), (9, 33)])
def test_equals_numpy(place, both_orders, shape):
    check(column_sums, shape)


def test_runs_of_runs(place):
    (x,) = normal((column_sums.RUN**2 + 1, 1))
    assert_close(column_sums.column_sums(to_device(x)), x.sum(0, dtype=np.float64))
