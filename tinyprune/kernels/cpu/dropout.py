"""Dropout of what is added to the residual stream. See `tinyprune.ops.residual`.

    for i: out[i] = x[i] + y[i] · (1 / (1 − dropout) if kept(i) else 0)

The mask is never stored: forward and backward each compute whether an entry is kept, in loops that LLVM vectorises. All
steps of the hash, `formulas.kept`, are in 32 bits, of which a vector holds twice as many as of Numba's usual 64.
"""

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_alike, check_gradient, flat
from tinyprune.kernels.cpu.jit import kernel, loop_kernel
from tinyprune.kernels.cpu.joins import add
from tinyprune.kernels.formulas import Dropout, draw_mask
from tinyprune.ops.dropout import check_rate

kept = kernel(formulas.kept)


@kernel
def keep_factor(i, factor, key0, key1, limit):
    """Return what entry i is multiplied by: the factor, or 0 if it is dropped."""
    return factor if kept(i, key0, key1, limit) else np.float32(0)


@loop_kernel
def drop(x, onto, factor, key0, key1, limit, out):
    """Set out[i] = x[i] · (factor if kept, else 0), all 1-D, plus onto[i] unless `onto` is None; 0 · NaN is NaN."""
    factor = x.dtype.type(factor)
    key0, key1, limit = np.uint32(key0), np.uint32(key1), np.uint32(limit)
    for i in prange(x.size):
        value = x[i] * keep_factor(i, factor, key0, key1, limit)
        out[i] = value if onto is None else onto[i] + value  # Numba compiles only one of the two


def apply(x: NDArray, mask: Dropout, onto: NDArray | None = None) -> NDArray:
    """Return x times the factors of the mask, plus `onto` if that is given, as a new array."""
    out = workspace.empty(x.shape, x.dtype)
    drop(x.size, flat(x), onto if onto is None else flat(onto), *mask, out.reshape(-1))
    return out


def residual_forward(
    x: NDArray, y: NDArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[NDArray, tuple]:
    """Add dropout(y) to x. Arguments, results and errors as in `ops.residual_forward`; float32 or float64."""
    check_alike(x=x, y=y)
    check_rate("dropout", dropout)
    mask = None if rng is None or dropout == 0 else draw_mask(dropout, rng)
    out = add(x, y) if mask is None else apply(y, mask, onto=x)
    return out, (mask, x.shape, x.dtype)


def residual_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `residual_forward`, as `ops.residual_backward`; the hash tells again what was dropped."""
    mask, shape, dtype = cache
    check_gradient(dout, shape, dtype)
    # out = x + y * keep / (1 - dropout)
    return dout, dout if mask is None else apply(dout, mask)
