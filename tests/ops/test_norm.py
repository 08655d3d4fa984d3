"""Squared norm: in float64, of any layout, and honest about numbers that are not finite."""

import math

import numpy as np
import pytest

from tinyprune.ops import squared_norm, squared_norms


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sum_of_squares_as_a_python_float(dtype):
    result = squared_norm(np.array([[1, -2], [3, 4]], dtype))
    assert type(result) is float and result == 30.0
    assert squared_norm(np.zeros((2, 0), dtype)) == 0.0
    assert squared_norm(np.array(-3, dtype)) == 9.0


def test_float32_is_squared_and_summed_in_float64():
    x = np.concatenate([[2**13], np.ones(1001)]).astype(np.float32)
    assert squared_norm(x) == 2**26 + 1001
    assert math.isclose(squared_norm(np.full(2, 1e30, np.float32)), 2 * float(np.float32(1e30)) ** 2, rel_tol=1e-15)


def test_it_does_not_depend_on_memory_layout():
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((300, 70)).astype(np.float32)
        assert squared_norm(np.asfortranarray(x)) == squared_norm(x)
        assert squared_norm(np.repeat(x, 2, axis=1)[:, ::2]) == squared_norm(x)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, 1e200])
def test_infinite(bad):
    assert squared_norm(np.array([1.0, bad])) == math.inf
    assert squared_norm(np.full(4, 1.2e154)) == math.inf  # each square is finite, their sum is not


def test_nan():
    assert math.isnan(squared_norm(np.array([1.0, np.nan, np.inf])))


def test_of_several_arrays():
    assert squared_norms([np.array([[1.0, 2.0]]), np.array(3.0, np.float32), np.zeros(0)]) == [5.0, 9.0, 0.0]
    assert squared_norms([]) == []
