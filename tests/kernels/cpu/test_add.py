"""Sums compiled: to the bit those of NumPy, of views too; bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given

from tinyprune.kernels.cpu.add import add

from .compare import (
    LARGE,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    leading,
    seeds,
    widths,
)


@each_dtype
@few
@given(first=leading, D=widths, seed=seeds)
@example(first=LARGE, D=37, seed=0)
def test_like_the_textbook(dtype, first, D, seed):
    a, b = draw(seed, dtype, (*first, D), (*first, D))
    copies = a.copy(), b.copy()
    assert_same_bits(add(a, b), a + b)
    assert_same_bits((a, b), copies)


def test_views_and_arrays_that_are_read_only():
    a, b = draw(0, np.float32, (3, 7, 5), (3, 7, 5))
    assert_same_bits(add(a[:, 4:], b[:, 2::2]), a[:, 4:] + b[:, 2::2])
    assert_same_bits(add(a.T, b.T), np.ascontiguousarray(a.T + b.T))
    a.flags.writeable = False
    assert_same_bits(add(a, b), a + b)


def test_threads_do_not_matter():
    a, b = draw(0, np.float32, (*LARGE, 37), (*LARGE, 37))
    assert_threads_do_not_matter(lambda: add(a, b))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(2, 3\), got \(3,\)"):
        add(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match="b must have the dtype of a, float32, got float64"):
        add(np.ones(3, np.float32), np.ones(3))
    with pytest.raises(ValueError, match="a must be float32 or float64"):
        add(np.ones(3, complex), np.ones(3, complex))
