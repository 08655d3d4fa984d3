"""Residual connection: add to x what dropout leaves of y. See `tinyprune.ops.residual`.

    for i: out[i] = x[i] + y[i] · (1 / (1 − dropout) if kept(i) else 0)

One pass over x and y replaces one for the mask, two for dropout and one for the sum.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cpu.add import add
from tinyprune.kernels.cpu.arguments import alike, check_alike
from tinyprune.kernels.cpu.dropout import apply, dropout_backward
from tinyprune.ops.dropout import check_rate, draw_keys


def residual_forward(
    x: NDArray, y: NDArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[NDArray, tuple]:
    """Add dropout(y) to x. Arguments, results and errors as in `ops.residual_forward`; float32 or float64."""
    if not alike(x, y):
        check_alike(x=x, y=y)
    check_rate("dropout", dropout)
    if rng is None or dropout == 0:
        return add(x, y), (None, 0.0, x.shape, x.dtype)
    keys = draw_keys(rng)
    return apply(y, dropout, keys, onto=x), (keys, dropout, x.shape, x.dtype)


def residual_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `residual_forward`, `dout` itself and dropout of it, as `ops.residual_backward`."""
    # out = x + dropout(y)
    return dout, dropout_backward(dout, cache)
