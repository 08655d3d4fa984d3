"""What the tests of the kernels share: shapes, inputs, comparison with the textbook, one thread against two."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)

# No deadline, since the first example compiles.
few = settings(max_examples=25, deadline=None, derandomize=True)
# 1, primes, whole vectors of 4 to 16 lanes, and one more or less
widths = st.sampled_from([1, 2, 3, 7, 8, 13, 15, 16, 17, 31, 32, 33, 61, 64, 127])
LARGE = (3, 181)  # with a width of 37 it is more than `arguments.SMALL`, and so is shared by threads
leading = st.sampled_from([(), (0,), (1,), (5,), (2, 3), (1, 31), (33,), (97,), (2, 0, 3), LARGE])
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, dtype: type, *shapes: tuple[int, ...]) -> list[NDArray]:
    """Standard normal numbers in these shapes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def in_float64(value: Any) -> Any:
    """An argument as the textbook is given it: floats in float64, everything else as it is."""
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


def assert_close(got: Any, expected: Any, dtype: type) -> None:
    """`got` (one array or several) is of `dtype` and as near to `expected` as the tolerance times its largest entry."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, dtype)
        return
    assert got.dtype == dtype and got.shape == expected.shape
    finite = np.isfinite(expected)
    size = np.abs(expected[finite]).max() if finite.any() else 0.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, size))


def assert_same_bits(got: Any, expected: Any) -> None:
    """Arrays, or tuples of arrays, equal to the last bit."""
    if isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same_bits(one, other)
        return
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape and got.tobytes() == expected.tobytes()


def assert_threads_do_not_matter(compute: Callable[[], Any]) -> None:
    """`compute()` is the same to the last bit with one thread and with as many as there are."""
    threads = numba.get_num_threads()
    if threads == 1:
        pytest.skip("there is only one thread here")
    many = compute()
    try:
        numba.set_num_threads(1)
        one = compute()
    finally:
        numba.set_num_threads(threads)
    assert_same_bits(one, many)
