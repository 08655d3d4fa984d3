"""The kernel of attention's forward by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_outputs

from .attention_case import SMALL, case, installed, made
from .compare import assert_close, on_device


def check(module, every=tuple(SMALL)):
    """Tiles of all kinds."""
    for sizes in every:
        c = case(sizes)
        with installed({"forward": made(module, "forward", SMALL[sizes]["forward"])}):
            try:
                out, cache = attention.attention_forward(*map(on_device, c.x), **c.options, rng=c.rng())
            except ValueError as error:  # a logarithm, in Python, of what should have been a sum of weights
                raise AssertionError from error
        assert_close((out, cache.o), (c.expected["out"], c.expected["o"]))


@pytest.mark.parametrize("sizes", SMALL)
def test_equals_textbook(place, both_orders, sizes):
    check(attention_outputs, [sizes])
