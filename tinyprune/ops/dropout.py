"""Dropout: set a random share of the entries to zero and scale the others up. (Srivastava et al. 2014, §4)

    out = x · keep / (1 − rate)        keep ∈ {0, 1}, P(keep = 1) = 1 − rate

The division ("inverted dropout") keeps the mean, so that evaluation is the identity.

Whether an entry is kept depends on two keys, drawn from the generator once a call, and on the entry's own number, by
a hash (a "counter-based" generator, Salmon et al. 2011; the mixing is triple32 by Wellons 2018, with the second key let
in after its first round). So a compiled kernel can work out any entry's fate where it stands, in forward and again in
backward, without storing it; and every backend that is handed the same generator drops the same entries.
"""

import numpy as np
from numpy.typing import NDArray


def draw_keys(rng: np.random.Generator) -> tuple[int, int]:
    """Draw the two 32-bit keys of a dropout mask."""
    first, second = rng.integers(0, 2**32, size=2, dtype=np.uint32)
    return int(first), int(second)


def keep_mask(shape: tuple[int, ...], rate: float, keys: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which entries are kept: entry i (in C order, modulo 2³²) iff hash(i, keys) ≥ rate · 2³².

    Args:
        shape: of the mask.
        rate: share of entries to drop, 0 ≤ rate < 1.
        keys: two integers below 2³², see `draw_keys`.

    Returns:
        keep: bool, `shape`.
    """
    size = int(np.prod(shape, dtype=np.int64))
    h = np.arange(size, dtype=np.uint32)  # arithmetic on uint32 arrays wraps around, which is what a hash wants
    h ^= np.uint32(keys[0])
    h ^= h >> np.uint32(17)
    h *= np.uint32(0xED5AD4BB)
    h ^= np.uint32(keys[1])
    h ^= h >> np.uint32(11)
    h *= np.uint32(0xAC4C1B51)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x31848BAB)
    h ^= h >> np.uint32(14)
    return (h >= np.uint32(rate * 2**32)).reshape(shape)


def check_rate(name: str, rate: float) -> None:
    """Raise ValueError unless 0 ≤ rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")


def dropout_forward(x: NDArray, rate: float, rng: np.random.Generator | None) -> tuple[NDArray, tuple]:
    """Drop a share `rate` of the entries of `x`; do nothing when `rng` is None, as in evaluation.

    Args:
        x: activations, any shape, any float or complex dtype.
        rate: share of entries to drop, 0 ≤ rate < 1.
        rng: where the mask's keys are drawn from, or None for evaluation.

    Returns:
        out: shape and dtype of `x`.
        cache: what `dropout_backward` needs.

    Raises:
        ValueError: if `rate` is not in [0, 1).
    """
    check_rate("rate", rate)
    if rng is None or rate == 0:
        return x, (None, 0.0)
    keep = keep_mask(x.shape, rate, draw_keys(rng))
    out = x * keep
    out /= 1 - rate
    return out, (keep, rate)


def dropout_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `dropout_forward`: 0 for dropped entries, and `dout` scaled as x was for the others.

    Args:
        dout: gradient of the loss with respect to `out`, shape of `x`. Not modified.

    Returns:
        dx: shape of `x`.
    """
    keep, rate = cache
    if keep is None:
        return dout
    # out = x * keep / (1 - rate)
    dx = dout * keep
    dx /= 1 - rate
    return dx
