"""The kernel that makes dr and dw by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_distances

from .attention_case import SMALL, case, installed, made
from .compare import assert_close


def check(module, every=tuple(SMALL)):
    """Tiles of all kinds."""
    for sizes in every:
        c = case(sizes)
        name = "distances_backward"
        with installed({name: made(module, name, SMALL[sizes][name])}):
            assert_close(attention.distance_gradients(*c.gradients), (c.expected["dr"], c.expected["dw"]))


@pytest.mark.parametrize("sizes", SMALL)
def test_equals_textbook(place, both_orders, sizes):
    check(attention_distances, [sizes])
