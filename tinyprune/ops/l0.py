"""L0: how many heads are expected to be open, a *sum* over all heads. (Louizos et al. 2018, eq. 12)

p_open = P(g > 0) = sigmoid(log_alpha − beta · log(−gamma / zeta))
L0     = Σ_h p_open_h            or Σ_h w_h · p_open_h, where gates close parts of different sizes w
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape
from tinyprune.ops.hard_concrete import sigmoid


def p_open(log_alpha: NDArray, *, beta: float, gamma: float, zeta: float) -> NDArray:
    """Return the probability that a sampled gate is above 0; shape and dtype of `log_alpha`."""
    return sigmoid(log_alpha - beta * math.log(-gamma / zeta))


def l0_forward(
    log_alpha: NDArray, weights: NDArray | None = None, *, beta: float, gamma: float, zeta: float
) -> tuple[np.inexact, tuple]:
    """Compute the expected number of open gates.

    Args:
        log_alpha: one number per gate, any shape, any float or complex dtype.
        weights: how much each gate counts, shape of `log_alpha`, a constant; None for ones.
        beta, gamma, zeta: of the gates, as in `hard_concrete_forward`.

    Returns:
        L0: scalar, heads, dtype of `log_alpha`.
        cache: what `l0_backward` needs.

    Raises:
        ValueError: if there is not one weight for each gate.
    """
    p = p_open(log_alpha, beta=beta, gamma=gamma, zeta=zeta)
    if weights is None:
        return np.sum(p), (p, None)
    check_same_shape(log_alpha=log_alpha, weights=weights)
    return (weights * p).sum(), (p, weights.astype(p.real.dtype))


def l0_backward(dout: float | np.inexact, cache: tuple) -> NDArray:
    """Return the gradient of `l0_forward` with respect to `log_alpha`: dout · w p_open (1 − p_open).

    Args:
        dout: gradient with respect to `L0`, scalar.

    Returns:
        dlog_alpha: shape of `log_alpha`.
    """
    p, weights = cache
    dout = p.dtype.type(dout)  # a float64 scalar would make float64 of float32
    # L0 = Σ w · sigmoid(log_alpha - …)
    dp = dout if weights is None else dout * weights
    return dp * p * (1 - p)
