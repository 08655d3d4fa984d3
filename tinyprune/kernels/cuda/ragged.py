"""Four neighbours at a time where the array may end, or not begin on 16 bytes."""

from __future__ import annotations

from tinyprune.kernels.cuda.jit import device, float32
from tinyprune.kernels.cuda.vectors import load4, store4


@device
def load_some(x, i, left, aligned):
    """x[i], x[i + 1], x[i + 2], x[i + 3], of which `left` are there, and zeros for those that are not.

    aligned: whether i is a multiple of 4 wherever `left` is 4 or more.
    """
    if aligned and left >= 4:
        return load4(x, i)
    zero = float32(0)
    return (
        x[i] if left > 0 else zero,
        x[i + 1] if left > 1 else zero,
        x[i + 2] if left > 2 else zero,
        x[i + 3] if left > 3 else zero,
    )


@device
def store_some(x, i, left, aligned, a, b, c, d):
    """x[i] = a and so on, as far as those `left` are there; see `load_some`."""
    if aligned and left >= 4:
        store4(x, i, a, b, c, d)
    else:
        if left > 0:
            x[i] = a
        if left > 1:
            x[i + 1] = b
        if left > 2:
            x[i + 2] = c
        if left > 3:
            x[i + 3] = d
