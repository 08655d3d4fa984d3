"""The kernel that makes dq by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_queries

from .attention_case import SMALL, case, installed, made
from .compare import assert_close


def check(module, every=tuple(SMALL)):
    """Tiles of all kinds."""
    for sizes in every:
        c = case(sizes)
        with installed({"queries_backward": made(module, "queries_backward", SMALL[sizes]["queries_backward"])}):
            assert_close(attention.query_gradients(*c.gradients), c.expected["dq"])


@pytest.mark.parametrize("sizes", SMALL)
def test_equals_textbook(place, both_orders, sizes):
    check(attention_queries, [sizes])
