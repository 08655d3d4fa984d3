"""The kernel that makes dq by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_queries

from .attention_case import WIDTHS, case, installed, quarters
from .compare import assert_close


def check(module, widths=WIDTHS):
    """More than one tile of everything, with the tiles of every width."""
    with installed({"queries_backward": quarters("queries_backward", module)}):
        for width in widths:
            c = case(width)
            assert_close(attention.query_gradients(*c.gradients), c.expected["dq"])


@pytest.mark.parametrize("width", WIDTHS)
def test_equals_textbook(place, both_orders, width):
    check(attention_queries, [width])
