"""Rotary positions: turn pairs of features of queries and keys by angles that grow with the position.
(Su et al. 2021, "RoFormer", §3.2.2)

    θ_td        = (first + t) · base^(−2d / Dh)                           d = 0 … Dh/2 − 1
    out_d        = x_d · cos θ_td − x_{d+Dh/2} · sin θ_td                 x, out (B, T, H, Dh)
    out_{d+Dh/2} = x_{d+Dh/2} · cos θ_td + x_d · sin θ_td

Llama 3.1 was trained on longer texts with slower angles for features that turn less than `high` times in the original
`positions`, down to 1 / `factor` of them for those that turn less than `low` times (Grattafiori et al. 2024, §3.2).

A product of a query and a key that are both turned depends on the distance between them alone. Feature d is paired with
d + Dh/2, as in Hugging Face's Llama ("rotate_half"); the paper pairs neighbours, which is another order of features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


Base = float | tuple[float, ...]  # (factor, low, high, positions, base) for Llama 3.1's angles


def rotary_forward(ops: Engine, x: NDArray, base: Base | None = 10000.0, first: int = 0) -> tuple[NDArray, Any]:
    """Turn the features of every position and head.

    Args:
        ops: turns them; `ops.rotary_forward` passes itself.
        x: queries or keys, (B, T, H, Dh), Dh even, any float or complex dtype.
        base: of the angles, > 0; the larger, the more slowly the last features turn. None hands on `x`. A tuple for
            Llama 3.1's angles, see `Base`.
        first: position of x[:, 0], at least 0. Row t has position first + t.

    Returns:
        out: (B, T, H, Dh), dtype of `x`; a new array, or `x` itself without a base.
        cache: what `rotary_backward` needs.

    Raises:
        ValueError: if `x` has not four axes or Dh is odd, or if `base` or `first` is out of range.
    """
    return (x, None) if base is None else (ops.rotate(x, base, first), (base, first))


def rotary_backward(ops: Engine, dout: NDArray, cache: Any) -> NDArray:
    """Return the gradient of `rotary_forward` with respect to `x`: `dout` turned back, or `dout` without a base.

    The transpose of a rotation by θ is the rotation by −θ.

    Args:
        dout: gradient of the loss with respect to `out`, (B, T, H, Dh). Not modified.

    Returns:
        dx: (B, T, H, Dh).
    """
    # out = rotate(x, base, first)
    return dout if cache is None else ops.rotate(dout, *cache, back=True)


def rotate(x: NDArray, base: Base, first: int = 0, *, back: bool = False) -> NDArray:
    """Turn the features of every position and head by θ, or `back` by −θ.

    Args and errors are those of `rotary_forward`.
    """
    check_arguments(x, base, first)
    cos, sin = cos_and_sin(x.shape[1], x.shape[3], base, first, x.real.dtype)
    if back:
        sin = -sin
    x1, x2 = halves(x)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def cos_and_sin(T: int, Dh: int, base: Base, first: int, dtype: DTypeLike) -> tuple[NDArray, NDArray]:
    """Return cos θ and sin θ, (T, 1, Dh/2) each. Angles are computed in float64, whatever the dtype: they are large."""
    angles = (first + np.arange(T))[:, None, None] * frequencies(Dh, base)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def frequencies(Dh: int, base: Base) -> NDArray:
    """Return the angle from one position to the next of each pair of features, (Dh/2,) float64."""
    d = np.arange(Dh // 2)
    if not isinstance(base, tuple):
        return base ** (-2 * d / Dh)
    factor, low, high, positions, base = base
    plain = base ** (-2 * d / Dh)
    share = np.clip((positions * plain / (2 * np.pi) - low) / (high - low), 0, 1)
    return plain * (share + (1 - share) / factor)


def halves(x: NDArray) -> tuple[NDArray, NDArray]:
    """Return the first half of the features and the second, views."""
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def check_arguments(x: NDArray, base: Base, first: int) -> None:
    """Raise ValueError, naming the argument, unless `x` has pairs of features and the numbers are in range."""
    if x.ndim != 4 or x.shape[3] % 2:
        raise ValueError(f"x must be (B, T, H, Dh) with an even Dh, got {x.shape}")
    if not (np.all(np.array(base) > 0) and np.size(base) in (1, 5)):
        raise ValueError(f"base must be greater than 0, or five such numbers, got {base}")
    if first < 0:
        raise ValueError(f"first must be at least 0, got {first}")
