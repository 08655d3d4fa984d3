"""Formulas that kernels for the CPU and for the GPU share; each compiles them for itself.

Plain functions of scalars: what one of them returns depends on its arguments alone, and none calls another. They know
nothing of Numba and run as they stand, too, as in Numba's simulator of a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def threshold(rate: float) -> int:
    """What an entry's hash has to reach for dropout to keep the entry."""
    return int(rate * 2**32)


def kept(number, key0, key1, limit):
    """Whether dropout keeps the entry of this number: the hash of `tinyprune.ops.dropout.keep_mask`, for one entry.

    Keys and limit, the `threshold` of the rate, are uint32. Numba makes 64 bits of every sum and product, and `u32` 32
    again; at each step, or LLVM would work on half as many entries at once. NumPy multiplies in 64 bits so as not to
    warn of what no longer fits into 32; a compiler sees that only 32 are wanted.
    """
    u32, u64 = np.uint32, np.uint64
    h = u32(u32(number) ^ key0)
    h = u32(u32(h ^ u32(h >> u32(17))) * u64(0xED5AD4BB))
    h = u32(h ^ key1)
    h = u32(u32(h ^ u32(h >> u32(11))) * u64(0xAC4C1B51))
    h = u32(u32(h ^ u32(h >> u32(15))) * u64(0x31848BAB))
    return u32(h ^ u32(h >> u32(14))) >= limit


def adam_constants(real: Any, beta1: float, beta2: float, eps: float, step: float, grad_scale: float) -> tuple:
    """What `adam` computes with, in the type `real` of the arrays: with one float64 it would compute all in float64."""
    corrections = real(1 - beta1**step), real(1 - beta2**step)
    return real(grad_scale), real(beta1), real(1 - beta1), real(beta2), real(1 - beta2), *corrections, real(eps)


def adam(grad, m, v, constants):
    """Of one entry: m and v after they have taken in the gradient, and m̂ / (√v̂ + eps). See `tinyprune.ops.adamw`."""
    grad_scale, m_keep, m_take, v_keep, v_take, m_correction, v_correction, eps = constants
    g = grad_scale * grad
    m = m_keep * m + m_take * g
    v = v_keep * v + v_take * (g * g)
    return m, v, m / m_correction / (math.sqrt(v / v_correction) + eps)
