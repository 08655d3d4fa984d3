"""LayerNorm: give every feature vector zero mean and unit variance, then scale and shift it. (Ba et al. 2016, eq. 3-4)

mean = mean_d x                    (..., 1)
std  = sqrt(mean_d (x − mean)² + eps)
n    = (x − mean) / std            (..., D)
out  = n · scale + bias            (..., D)
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes


def layernorm_forward(x: NDArray, scale: NDArray, bias: NDArray, eps: float = 1e-5) -> tuple[NDArray, tuple]:
    """Normalise the last axis of `x`, then scale and shift it.

    Args:
        x: activations, (..., D), any float or complex dtype.
        scale: learned gain, (D,).
        bias: learned shift, (D,).
        eps: added to the variance, so that a constant vector stays finite.

    Returns:
        out: (..., D), dtype of `x`.
        cache: what `layernorm_backward` needs.

    Raises:
        ValueError: if `scale` or `bias` is not one number per feature of `x`.
    """
    check_scale_and_bias(x, scale, bias)
    centred = x - x.mean(-1, keepdims=True)
    # A plain square, not |x|²: it stays differentiable in complex arithmetic, where the gradients are checked.
    std = np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    n = centred / std
    out = n * scale + bias
    return out, (n, std, scale)


def layernorm_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray, NDArray]:
    """Return the gradients of `layernorm_forward` in argument order.

    Every dn_d reaches every x_d' by three paths: straight, through the mean and through std. Together,

        dx = (dn − mean_d dn − n · mean_d(dn · n)) / std.

    Args:
        dout: gradient of the loss with respect to `out`, (..., D). Not modified.

    Returns:
        dx: (..., D).   dscale: (D,).   dbias: (D,), both summed over all leading axes.
    """
    n, std, scale = cache
    D = n.shape[-1]
    # out = n * scale + bias
    dscale = (dout * n).reshape(-1, D).sum(0)
    dbias = dout.reshape(-1, D).sum(0)
    dn = dout * scale
    # n = (x - mean) / std,  std = sqrt(mean (x - mean)² + eps)
    dx = (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True)) / std
    return dx, dscale, dbias


def check_scale_and_bias(x: NDArray, scale: NDArray, bias: NDArray) -> None:
    """Raise ValueError, naming the argument, unless both have one number for each feature of x."""
    check_shapes("x: ... D, scale: D, bias: D", x, scale, bias)
