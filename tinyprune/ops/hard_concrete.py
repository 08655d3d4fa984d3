"""The Hard-Concrete gate: a number in [0, 1] that can be exactly 0 or 1 and still has a gradient.
(Louizos, Welling & Kingma 2018, eq. 10-13)

    u  ~ U(eps, 1 − eps)
    s  = sigmoid((log u − log(1 − u) + log_alpha) / beta)         a smoothed coin, sharper for smaller beta
    s̄  = s · (zeta − gamma) + gamma                               stretched beyond [0, 1]
    g  = clip(s̄, 0, 1)                                            and cut, so that 0 and 1 have weight
    hard ("straight-through"): the forward pass uses 1[g ≥ ½], the backward pass the gradient of g

In evaluation there is no noise and no temperature: s = sigmoid(log_alpha). With gamma + zeta = 1, as in the paper
(−0.1 and 1.1), a hard gate is then open iff log_alpha ≥ 0.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

NOISE_EPS = 1e-6


def sigmoid(x: NDArray) -> NDArray:
    """Compute 1 / (1 + exp(−x)) from exp(−|x|), which cannot overflow."""
    positive = x.real >= 0
    z = np.exp(np.where(positive, -x, x))
    return np.where(positive, 1, z) / (1 + z)


def draw_noise(shape: tuple[int, ...] | int, rng: np.random.Generator, dtype: np.dtype | type) -> NDArray:
    """Draw the gates' noise u ~ U(1e-6, 1 − 1e-6)."""
    return rng.uniform(NOISE_EPS, 1 - NOISE_EPS, shape).astype(dtype)


def hard_concrete_forward(
    log_alpha: NDArray, u: NDArray | None, *, beta: float, gamma: float, zeta: float, hard: bool
) -> tuple[NDArray, tuple]:
    """Sample the gates of `log_alpha` with the noise `u`, or evaluate them without noise.

    Args:
        log_alpha: one number per gate, any shape, any float or complex dtype. The larger, the likelier open.
        u: noise in (0, 1), shape of `log_alpha`, real, see `draw_noise`; None for evaluation.
        beta: temperature, > 0.
        gamma: lower end of the stretch, < 0.
        zeta: upper end of the stretch, > 1.
        hard: use 0 or 1 in the forward pass and the gradient of g in the backward pass (straight-through).

    Returns:
        gate: shape and dtype of `log_alpha`.
        cache: what `hard_concrete_backward` needs.

    Raises:
        ValueError: if beta, gamma or zeta is out of range or `u` does not match.
    """
    check_arguments(log_alpha, u, beta, gamma, zeta)
    if u is None:
        temperature = 1.0
        s = sigmoid(log_alpha)
    else:
        temperature = beta
        s = sigmoid((np.log(u) - np.log1p(-u) + log_alpha) / temperature)
    stretched = s * (zeta - gamma) + gamma
    inside = (stretched.real > 0) & (stretched.real < 1)
    gate = np.where(inside, stretched, (stretched.real >= 1).astype(stretched.dtype))
    if hard:
        # `gate - gate.real` is zero in real arithmetic. In complex arithmetic it carries the derivative of g past the
        # step: just what "straight-through" means, so that the complex step checks this gate like any other.
        gate = (gate.real >= 0.5) + (gate - gate.real)
    return gate, (s, inside, temperature, zeta - gamma)


def hard_concrete_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `hard_concrete_forward` with respect to `log_alpha`, the same for hard and soft gates.

        ∂g/∂log_alpha = (zeta − gamma) · s (1 − s) / beta   where 0 < s̄ < 1, else 0     (evaluation: beta = 1)

    Args:
        dout: gradient of the loss with respect to `gate`, shape of `log_alpha`. Not modified.

    Returns:
        dlog_alpha: shape of `log_alpha`.
    """
    s, inside, temperature, stretch = cache
    # g = clip(s̄, 0, 1),  s̄ = s * (zeta - gamma) + gamma
    ds = dout * inside * stretch
    # s = sigmoid((… + log_alpha) / beta)
    return ds * s * (1 - s) / temperature


def check_arguments(log_alpha: NDArray, u: NDArray | None, beta: float, gamma: float, zeta: float) -> None:
    """Raise ValueError unless the gate's constants are in range and `u` is None or of the shape of `log_alpha`."""
    if not (beta > 0 and gamma < 0 and zeta > 1):
        raise ValueError(f"needed are beta > 0, gamma < 0, zeta > 1; got beta {beta}, gamma {gamma}, zeta {zeta}")
    check_shapes("log_alpha: ..., u?: ...", log_alpha, u)
