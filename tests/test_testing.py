"""The gradient test for layers of other people's."""

import doctest

import tinyprune.testing


def test_documented_convolution_runs_and_its_mistake_is_found():
    result = doctest.testmod(tinyprune.testing)
    assert result.attempted >= 7 and result.failed == 0
