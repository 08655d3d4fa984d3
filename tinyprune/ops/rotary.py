"""Rotary positions: turn pairs of features of queries and keys by angles that grow with the position.
(Su et al. 2021, "RoFormer", §3.2.2)

    θ_td        = (first + t) · base^(−2d / Dh)                           d = 0 … Dh/2 − 1
    out_d        = x_d · cos θ_td − x_{d+Dh/2} · sin θ_td                 x, out (B, T, H, Dh)
    out_{d+Dh/2} = x_{d+Dh/2} · cos θ_td + x_d · sin θ_td

A product of a query and a key that are both turned depends on the distance between them alone. Feature d is paired with
d + Dh/2, as in Hugging Face's Llama ("rotate_half"); the paper pairs neighbours, which is another order of features.
"""

import numpy as np
from numpy.typing import DTypeLike, NDArray


def rotary_forward(x: NDArray, base: float = 10000.0, first: int = 0) -> tuple[NDArray, tuple]:
    """Turn the features of every position and head.

    Args:
        x: queries or keys, (B, T, H, Dh), Dh even, any float or complex dtype.
        base: of the angles, > 0; the larger, the more slowly the last features turn.
        first: position of x[:, 0], at least 0. Row t has position first + t.

    Returns:
        out: (B, T, H, Dh), dtype of `x`, a new array.
        cache: what `rotary_backward` needs.

    Raises:
        ValueError: if `x` has not four axes or Dh is odd, or if `base` or `first` is out of range.
    """
    check_arguments(x, base, first)
    cos, sin = cos_and_sin(x.shape[1], x.shape[3], base, first, x.real.dtype)
    x1, x2 = halves(x)
    out = np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return out, (cos, sin)


def rotary_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `rotary_forward` with respect to `x`: `dout` turned back.

    Args:
        dout: gradient of the loss with respect to `out`, (B, T, H, Dh). Not modified.

    Returns:
        dx: (B, T, H, Dh).
    """
    cos, sin = cache
    dout1, dout2 = halves(dout)
    # out1 = x1 * cos - x2 * sin,  out2 = x2 * cos + x1 * sin
    return np.concatenate([dout1 * cos + dout2 * sin, dout2 * cos - dout1 * sin], axis=-1)


def cos_and_sin(T: int, Dh: int, base: float, first: int, dtype: DTypeLike) -> tuple[NDArray, NDArray]:
    """Return cos θ and sin θ, (T, 1, Dh/2) each. Angles are computed in float64, whatever the dtype: they are large."""
    t, d = np.arange(T), np.arange(Dh // 2)
    angles = (first + t)[:, None, None] * base ** (-2 * d / Dh)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def halves(x: NDArray) -> tuple[NDArray, NDArray]:
    """Return the first half of the features and the second, views."""
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def check_arguments(x: NDArray, base: float, first: int) -> None:
    """Raise ValueError, naming the argument, unless `x` has pairs of features and the numbers are in range."""
    if x.ndim != 4 or x.shape[3] % 2:
        raise ValueError(f"x must be (B, T, H, Dh) with an even Dh, got {x.shape}")
    if not base > 0:
        raise ValueError(f"base must be greater than 0, got {base}")
    if first < 0:
        raise ValueError(f"first must be at least 0, got {first}")
