"""GELU: a smooth ReLU, each number times the share of a normal distribution below it. (Hendrycks & Gimpel 2016, §2)

    z   = √(2/π) · (a + 0.044715 a³)            a, out (..., F)
    out = a · (1 + tanh z) / 2

This is the paper's approximation by tanh, with which GPT-2 was trained ("gelu_new" in Hugging Face's code).
"""

import math

import numpy as np
from numpy.typing import NDArray

LINEAR, CUBIC = math.sqrt(2 / math.pi), 0.044715


def gelu_forward(a: NDArray) -> tuple[NDArray, tuple]:
    """Apply GELU to every entry.

    Args:
        a: any shape, usually (..., F); any float or complex dtype.

    Returns:
        out: shape and dtype of `a`, a new array.
        cache: what `gelu_backward` needs.
    """
    z = LINEAR * (a + CUBIC * a * a * a)
    t = np.tanh(z)
    out = 0.5 * a * (1 + t)
    return out, (a, t)


def gelu_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `gelu_forward` with respect to `a`.

    Args:
        dout: gradient of the loss with respect to `out`, shape of `a`. Not modified.

    Returns:
        da: shape of `a`.
    """
    a, t = cache
    # out = 0.5 * a * (1 + t)
    da = 0.5 * dout * (1 + t)
    dt = 0.5 * dout * a
    # t = np.tanh(z)
    dz = dt * (1 - t * t)
    # z = LINEAR * (a + CUBIC * a * a * a)
    return da + dz * LINEAR * (1 + 3 * CUBIC * a * a)
