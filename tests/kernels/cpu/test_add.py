"""Sums compiled: to the bit those of NumPy, of views too; bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given

from tinyprune.kernels.cpu.add import add
from tinyprune.kernels.cpu.arguments import SMALL

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

VIEWS = {
    "last rows": lambda x: np.ascontiguousarray(x[:5, :, :67])[:, 39:],
    "rows with gaps": lambda x: x[:5, :61, :67],
    "every second": lambda x: np.repeat(x[:5, :61, :67], 2, axis=0)[1::2],
    "backwards": lambda x: np.ascontiguousarray(x[:, :61, :67])[4::-1],
    "one row five times": lambda x: np.broadcast_to(x[0, :61, :67].copy(), (5, 61, 67)),
    "transposed": lambda x: x[:5, :67, :61].transpose(0, 2, 1),
    "in Fortran's order": lambda x: np.asfortranarray(x[:5, :61, :67]),
    "every second entry": lambda x: np.repeat(x[:5, :61, :67], 2, axis=2)[..., ::2],
}


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


@each_dtype
@pytest.mark.parametrize("view", [*VIEWS])
def test_large_views(dtype, view):
    """A view is added where it lies, whatever it is; what lies around it is not."""
    a, wide = draw(0, dtype, (5, 61, 67), (8, 100, 80))
    b = VIEWS[view](wide)
    assert b.shape == a.shape and a.size >= SMALL
    copies = a.copy(), wide.copy()
    for one, two in ((a, b), (b, a), (b, b)):
        assert_same_bits(add(one, two), np.ascontiguousarray(one + two))
    assert_same_bits((a, wide), copies)


def test_threads_do_not_matter():
    a, b = draw(0, np.float32, (*LARGE, 37), (*LARGE, 37))
    assert_threads_do_not_matter(lambda: add(a, b))
    wide = np.repeat(b, 2, axis=1)
    assert_threads_do_not_matter(lambda: add(a, wide[:, LARGE[1] :]))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(2, 3\), got \(3,\)"):
        add(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match="b must have the dtype of a, float32, got float64"):
        add(np.ones(3, np.float32), np.ones(3))
    with pytest.raises(ValueError, match="a must be float32 or float64"):
        add(np.ones(3, complex), np.ones(3, complex))
