"""Sums that operations share, in shapes at which a block, a run of rows or a line of threads ends."""

import pytest

from tinyprune.kernels.cuda import sums
from tinyprune.kernels.cuda.device.array import to_device

from .checks import column_sums, row_dots
from .compare import assert_close, normal


@pytest.mark.parametrize("shape", [(2 * sums.RUN + 1, 1), (0, 3), (3, 0), (9, 33)])
def test_column_sums(place, shape):
    """Several runs, no rows, no columns."""
    column_sums(shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 3, 8), (0, 2, 4), (5, 0, 4)])
def test_row_dots(place, shape):
    row_dots(shape)


def test_means_over_more_numbers_than_a_block_has_threads(place, both_orders):
    (x,) = normal((3, 2 * sums.THREADS + 1))
    assert_close(sums.row_sums(to_device(x), x.shape[1]), x.mean(1, dtype=float))
