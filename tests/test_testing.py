"""The gradient test for layers of other people's."""

import doctest

import numpy as np
import pytest

import tinyprune
import tinyprune.testing
from tinyprune.testing import assert_gradients, check_gradients


def test_documented_convolution_runs_and_its_mistake_is_found():
    result = doctest.testmod(tinyprune.testing)
    assert result.attempted >= 7 and result.failed == 0


def test_is_the_checker_that_tests_the_library():
    assert assert_gradients is tinyprune.assert_gradients and check_gradients is tinyprune.check_gradients


def test_forward_that_refuses_complex_numbers_is_checked_by_differences():
    def relu_forward(x):
        return np.maximum(x, 0), x

    x = np.array([[-2.0, 0.5], [3.0, -0.1]])
    assert_gradients(relu_forward, lambda dout, x: dout * (x > 0), x, mode="central")
    with pytest.raises(AssertionError, match=r"relu_forward: wrong gradient with respect to x0"):
        assert_gradients(relu_forward, lambda dout, x: dout * (x < 0), x, mode="central")
