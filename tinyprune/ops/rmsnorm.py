"""RMSNorm: scale every feature vector to a root mean square of one. (Zhang & Sennrich 2019, eq. 4)

rms = sqrt(mean_d x² + eps)        (..., 1)
n   = x / rms                      (..., D)
out = n · scale                    (..., D)

LayerNorm without its mean and its bias: what is kept is the direction of x.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes


def rmsnorm_forward(x: NDArray, scale: NDArray, eps: float = 1e-5) -> tuple[NDArray, tuple]:
    """Normalise the last axis of `x`, then scale it.

    Args:
        x: activations, (..., D), any float or complex dtype.
        scale: learned gain, (D,).
        eps: added to the mean square, so that a zero vector stays zero.

    Returns:
        out: (..., D), dtype of `x`.
        cache: what `rmsnorm_backward` needs.

    Raises:
        ValueError: if `scale` is not one number for each feature of `x`.

    >>> x = np.array([3.0, 4.0])  # the mean of its squares is 12.5
    >>> out, _ = rmsnorm_forward(x, np.array([1.0, 10.0]), eps=0.0)
    >>> bool(np.allclose(out, [3 / 12.5**0.5, 40 / 12.5**0.5]))
    True
    >>> out, _ = rmsnorm_forward(x, np.ones(2), eps=3.5)  # now it is 16
    >>> out.tolist()
    [0.75, 1.0]
    """
    check_scale(x, scale)
    # A plain square, not |x|²: it stays differentiable in complex arithmetic, where the gradients are checked.
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    n = x / rms
    out = n * scale
    return out, (n, rms, scale)


def rmsnorm_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Gradients of `rmsnorm_forward` in argument order.

    Every dn_d reaches every x_d' by two paths: straight, and through rms. Together,

        dx = (dn − n · mean_d(dn · n)) / rms.

    Args:
        dout: gradient of the loss with respect to `out`, (..., D). Not modified.

    Returns:
        dx: (..., D).   dscale: (D,), summed over all leading axes.
    """
    n, rms, scale = cache
    # out = n * scale
    dscale = (dout * n).reshape(-1, n.shape[-1]).sum(0)
    dn = dout * scale
    # n = x / rms,  rms = sqrt(mean x² + eps)
    dx = (dn - n * (dn * n).mean(-1, keepdims=True)) / rms
    return dx, dscale


def check_scale(x: NDArray, scale: NDArray) -> None:
    """Raise ValueError unless `scale` is one number for each feature of x."""
    check_shapes("x: ... D, scale: D", x, scale)
