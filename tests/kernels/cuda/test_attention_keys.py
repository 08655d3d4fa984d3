"""The kernel that makes dk, dv, du, dpk and dpv by itself."""

import pytest

from tinyprune.kernels.cuda import attention, attention_keys

from .attention_case import SMALL, case, installed, made
from .compare import assert_close


def check(module, every=tuple(SMALL)):
    """Tiles of all kinds."""
    for sizes in every:
        c = case(sizes)
        with installed({"keys_backward": made(module, "keys_backward", SMALL[sizes]["keys_backward"])}):
            assert_close(attention.key_gradients(*c.gradients), [c.expected[name] for name in ("dk", "dv", "du")])
            assert_close(attention.persistent_gradients(*c.gradients), [c.expected[name] for name in ("dpk", "dpv")])


@pytest.mark.parametrize("sizes", SMALL)
def test_equals_textbook(place, both_orders, sizes):
    check(attention_keys, [sizes])
