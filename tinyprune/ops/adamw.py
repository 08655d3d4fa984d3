"""One update of AdamW: Adam with decoupled weight decay. (Loshchilov & Hutter 2019, Alg. 2)

    g  = grad_scale · grad
    m ← beta1 · m + (1 − beta1) · g              m̂ = m / (1 − beta1ᵗ)
    v ← beta2 · v + (1 − beta2) · g²             v̂ = v / (1 − beta2ᵗ)
    θ ← θ − lr · (m̂ / (√v̂ + eps) + decay · θ)

The divisions by 1 − betaᵗ undo that m and v started at zero.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape


class AdamConstants(NamedTuple):
    """The numbers of an update that all parameters share.

    Attributes:
        beta1, beta2: share of `m` and `v` that stays, at least 0 and below 1.
        eps: > 0; with it a number whose gradient has always been 0 stays where it is.
        step: t, the number of this step, from 1.
        grad_scale: factor applied to the gradients as they are read: the clipping factor. NaN: nothing is changed.
    """

    beta1: float
    beta2: float
    eps: float
    step: int
    grad_scale: float = 1.0


def adam_direction(grad: NDArray, m: NDArray, v: NDArray, constants: AdamConstants) -> NDArray:
    """Update `m` and `v` by the gradient and return m̂ / (√v̂ + eps), a new array."""
    beta1, beta2, eps, step, grad_scale = constants
    g = grad_scale * grad
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * np.square(g)
    root = np.sqrt(v / (1 - beta2**step))
    root += eps
    return m / (1 - beta1**step) / root


def adamw_updates(
    params: Sequence[NDArray],
    grads: Sequence[NDArray],
    ms: Sequence[NDArray],
    vs: Sequence[NDArray],
    *,
    lr: float,
    multipliers: Sequence[float],
    decays: Sequence[float],
    constants: AdamConstants,
) -> None:
    """Update parameters and their moments, in place, by one step. (A GPU updates them all at once.)

    Args:
        params: θ of each, any shape, float32 or float64.
        grads: the gradients, shapes of `params`. Not modified.
        ms, vs: running averages of the gradients and of their squares, shapes of `params`.
        lr: learning rate, of the step.
        multipliers: each parameter's own, of `lr`.
        decays: weight decays, in units of the learning rates.
        constants: of this step.

    Raises:
        ValueError: if there are not as many of each, or shapes differ.
    """
    for param, grad, m, v, multiplier, decay in zip(params, grads, ms, vs, multipliers, decays, strict=True):
        check_same_shape(param=param, grad=grad, m=m, v=v)
        if math.isnan(constants.grad_scale):
            continue
        r, rate = adam_direction(grad, m, v, constants), lr * multiplier
        param *= 1 - rate * decay
        param -= rate * r
