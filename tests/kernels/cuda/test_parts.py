"""Sums that operations share, in shapes at which a block, a run of rows or a line of threads ends."""

import pytest

from tinyprune.kernels.cuda import sums

from .checks import column_sums, row_dots


@pytest.mark.parametrize("shape", [(2 * sums.RUN + 1, 1), (0, 3), (3, 0), (9, 33)])
def test_column_sums(place, shape):
    """Several runs, no rows, no columns."""
    column_sums(shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 3, 8), (0, 2, 4), (5, 0, 4)])
def test_row_dots(place, shape):
    row_dots(shape)
