"""The kernel that makes dk, dv, du, dpk and dpv by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_keys

from .attention_case import WIDTHS, case, installed, quarters
from .compare import assert_close


def check(module, widths=WIDTHS):
    """More than one tile of everything, with the tiles of every width."""
    with installed({"keys_backward": quarters("keys_backward", module)}):
        for width in widths:
            c = case(width)
            assert_close(attention.key_gradients(*c.gradients), [c.expected[name] for name in ("dk", "dv", "du")])
            assert_close(attention.persistent_gradients(*c.gradients), [c.expected[name] for name in ("dpk", "dpv")])


@pytest.mark.parametrize("width", WIDTHS)
def test_equals_textbook(place, both_orders, width):
    check(attention_keys, [width])
