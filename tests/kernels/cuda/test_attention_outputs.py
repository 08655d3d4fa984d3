"""The kernel of attention's forward by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_outputs

from .attention_case import WIDTHS, case, installed, quarters
from .compare import assert_close, on_device


def check(module, widths=WIDTHS):
    """More than one tile of everything, with the tiles of every width."""
    with installed({"forward": quarters("forward", module)}):
        for width in widths:
            c = case(width)
            try:
                out, cache = attention.attention_forward(*map(on_device, c.x), **c.options, rng=c.rng())
            except ValueError as error:  # a logarithm, in Python, of what should have been a sum of weights
                raise AssertionError from error
            assert_close((out, cache.o), (c.expected["out"], c.expected["o"]))


@pytest.mark.parametrize("width", WIDTHS)
def test_equals_textbook(place, both_orders, width):
    check(attention_outputs, [width])
