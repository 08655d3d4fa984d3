"""Dropout: the share that stays, independence of entries and of keys."""

import itertools

import numpy as np
import pytest

from tinyprune.ops.dropout import draw_keys, keep_mask

SIZE = 200_000


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Of two 0/1 series, in standard deviations of what independent ones show."""
    return float(np.corrcoef(one, two)[0, 1]) * np.sqrt(len(one))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.95])
def test_the_share_that_stays_and_the_independence_of_keys(rate):
    """Keys as they are drawn: one after the other from a generator, and from generators of neighbouring seeds."""
    generator = np.random.default_rng(0)
    keys = [draw_keys(generator) for _ in range(8)]
    keys += [draw_keys(np.random.default_rng(seed)) for seed in range(1, 6)]
    masks = [keep_mask((SIZE,), rate, pair) for pair in keys]
    for mask in masks:
        assert abs(mask.mean() - (1 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / SIZE)
    for one, two in itertools.combinations(masks, 2):
        assert abs(correlation(one, two)) < 5


@pytest.mark.parametrize("which", [0, 1])
def test_one_flipped_bit_of_a_key_gives_another_mask(which):
    """Nearly independent: one bit of the second key, of sixty-four, leaves a correlation of 0.03."""
    keys = (123456789, 987654321)
    mask = keep_mask((SIZE,), 0.5, keys)
    for bit in range(32):
        flipped = list(keys)
        flipped[which] ^= 1 << bit
        assert abs(correlation(mask, keep_mask((SIZE,), 0.5, tuple(flipped)))) < 0.05 * np.sqrt(SIZE), bit


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64, 128, 1000, 4096])
def test_entries_of_one_mask_are_independent(lag):
    mask = keep_mask((SIZE,), 0.5, (3, 4))
    assert abs(correlation(mask[:-lag], mask[lag:])) < 5
