"""The gradient test for layers of other people's."""

import doctest

import tinyprune
import tinyprune.testing
from tinyprune.testing import assert_gradients, check_gradients


def test_documented_convolution_runs_and_its_mistake_is_found():
    result = doctest.testmod(tinyprune.testing)
    assert result.attempted >= 7 and result.failed == 0


def test_is_the_checker_that_tests_the_library():
    assert assert_gradients is tinyprune.assert_gradients and check_gradients is tinyprune.check_gradients
