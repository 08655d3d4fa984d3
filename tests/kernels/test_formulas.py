"""Formulas as they stand, without Numba: what is compiled from them is tested with the kernels."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.formulas import adam, adam_constants, kept, threshold
from tinyprune.ops.dropout import keep_mask

KEYS = 3_000_000_019, 4_100_000_003


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.999])
def test_the_hash_is_the_textbooks(rate):
    """Products that do not fit into 32 bits wrap around, and NumPy does not warn."""
    keys, limit = map(np.uint32, KEYS), np.uint32(threshold(rate))
    keys = tuple(keys)
    assert [bool(kept(i, *keys, limit)) for i in range(300)] == keep_mask((300,), rate, KEYS).tolist()


def test_an_entry_stays_up_to_exactly_its_hash():
    low, high = 0, 2**32  # kept at the one, dropped at the other
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keep_mask((1,), middle / 2**32, KEYS)[0] else (low, middle)
    assert kept(0, *KEYS, low) and not kept(0, *KEYS, high)


def test_adam_is_the_textbooks(rng):
    grad, m, v = rng.standard_normal((3, 5))
    constants = ops.adamw.AdamConstants(0.8, 0.95, eps=1e-3, step=3, grad_scale=0.7)
    got = [adam(*entry, adam_constants(np.float64, *constants)) for entry in zip(grad, m, v**2, strict=True)]
    v = v**2
    direction = ops.adamw.adam_direction(grad, m, v, constants)
    np.testing.assert_allclose(np.transpose(got), [m, v, direction], rtol=1e-14)
