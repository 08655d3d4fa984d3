"""The kernel that makes dr and dw by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_distances

from .attention_case import WIDTHS, case, installed, quarters
from .compare import assert_close


def check(module, widths=WIDTHS):
    """More than one tile of everything, with the tiles of every width."""
    with installed({"distances_backward": quarters("distances_backward", module)}):
        for width in widths:
            c = case(width)
            assert_close(attention.distance_gradients(*c.gradients), (c.expected["dr"], c.expected["dw"]))


@pytest.mark.parametrize("width", WIDTHS)
def test_equals_textbook(place, both_orders, width):
    check(attention_distances, [width])
