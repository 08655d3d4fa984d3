"""Squared norm compiled: in float64, by blocks; threads, views, overflow, bad arguments."""

import math

import numpy as np
import pytest
from hypothesis import given

from tinyprune import ops
from tinyprune.kernels.cpu.arguments import SMALL
from tinyprune.kernels.cpu.norm import COLUMNS, squared_norm, squared_norms

from .compare import assert_same_bits, assert_threads_do_not_matter, draw, each_dtype, few, leading, seeds, widths


@each_dtype
@few
@given(first=leading, D=widths, seed=seeds)
def test_like_the_textbook(dtype, first, D, seed):
    (x,) = draw(seed, dtype, (*first, D))
    got = squared_norm(x)
    assert isinstance(got, float)
    assert got == pytest.approx(ops.squared_norm(x), rel=1e-13)


@each_dtype
@pytest.mark.parametrize("size", [0, COLUMNS - 1, COLUMNS + 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL + 777])
def test_sizes_around_those_of_a_block(dtype, size):
    (x,) = draw(size, dtype, (size,))
    assert squared_norm(x) == pytest.approx(math.fsum(np.square(x, dtype=np.float64)), rel=1e-13)


def test_squares_of_float32_neither_overflow_nor_vanish():
    x = np.array([1e30, 1e-30], np.float32)
    assert squared_norm(x) == float(x[0]) ** 2
    assert squared_norm(x[1:]) == float(x[1]) ** 2


def test_what_is_not_finite():
    assert squared_norm(np.array([1e200, 1.0])) == math.inf
    assert squared_norm(np.array([-np.inf, 1.0], np.float32)) == math.inf
    assert math.isnan(squared_norm(np.array([np.nan, np.inf])))


def test_threads_do_not_matter():
    (x,) = draw(0, np.float32, (5 * SMALL + 3,))
    assert_threads_do_not_matter(lambda: squared_norm(x))


def test_views_are_summed_in_the_order_of_their_indices():
    (x,) = draw(0, np.float32, (70, 90))
    copy = x.copy()
    assert squared_norm(x.T[::2]) == squared_norm(x.T[::2].copy())
    assert_same_bits(x, copy)


def test_one_number():
    assert squared_norm(np.array(3.0)) == 9.0


def test_bad_arguments():
    with pytest.raises(ValueError, match="x must be float32 or float64 for a compiled kernel, got int64"):
        squared_norm(np.ones(3, int))


def test_of_several_arrays():
    (x, y) = draw(0, np.float32, (3, 700), (5,))
    assert squared_norms([x, y]) == [squared_norm(x), squared_norm(y)]
