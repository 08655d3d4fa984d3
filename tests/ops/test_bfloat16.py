"""bfloat16: rounding by hand, to the nearest and of two to the even one; what is no number stays so."""

import numpy as np
import pytest

from tinyprune.ops.bfloat16 import bfloat16_backward, bfloat16_forward

LAST = 2.0**-7  # the distance of numbers with 8 significant bits between 1 and 2
BY_HAND = [(1.0, 1.0), (1 + LAST, 1 + LAST), (1 + 0.49 * LAST, 1.0), (1 + 0.51 * LAST, 1 + LAST)]
BY_HAND += [(1 + LAST / 2, 1.0), (1 + 3 * LAST / 2, 1 + 2 * LAST)]  # half-way: to the even one
BY_HAND += [
    (2 - LAST / 4, 2.0),
    (255.4, 255.0),
    (255.6, 256.0),
    (0.0, 0.0),
    (2.0**-100 * 1.2677, 2.0**-100 * (1 + 34 * LAST)),
]
BY_HAND += [(3.4e38, np.inf), (3.385e38, 3.3895314e38), (np.inf, np.inf), (np.nan, np.nan)]


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_by_hand(sign):
    x, expected = (sign * np.array(column, np.float32) for column in zip(*BY_HAND, strict=True))
    out, cache = bfloat16_forward(x.reshape(3, 5))
    np.testing.assert_array_equal(out, expected.reshape(3, 5))
    assert out.dtype == np.float32 and np.signbit(out[1, 4]) == (sign < 0)
    dout = np.arange(15.0).reshape(3, 5)
    assert bfloat16_backward(dout, cache) is dout


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
def test_no_nan_becomes_a_number(bits):
    assert np.isnan(bfloat16_forward(np.array([bits], np.uint32).view(np.float32))[0])


def test_of_all_numbers_the_nearest():
    """Against every bfloat16 number of one sign, in float64."""
    all_of_them = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-80, 80, 4000)).astype(np.float32)
    after = np.searchsorted(all_of_them, x)
    below, above = all_of_them[after - 1], all_of_them[after]
    nearest = np.where(x - below < above - x, below, above)
    np.testing.assert_array_equal(bfloat16_forward(x)[0], nearest)


def test_only_float32_is_rounded():
    with pytest.raises(ValueError, match="x must be float32, got float64"):
        bfloat16_forward(np.ones(2))
