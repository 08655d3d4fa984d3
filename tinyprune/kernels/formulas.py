"""Formulas that kernels for the CPU and for the GPU share, and the masks of dropout that both are given.

Each backend compiles the formulas for itself. They are pure functions of scalars, and none calls another. They do not
depend on Numba: NumPy can call them as well.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tinyprune.ops.dropout import draw_keys
from tinyprune.ops.gelu import CUBIC, LINEAR

FIRST, THIRD = 2 * LINEAR, 2 * LINEAR * CUBIC  # GELU is a · sigmoid(FIRST · a + THIRD · a³)


class Dropout(NamedTuple):
    """These numbers decide in a kernel whether an entry is kept."""

    factor: float  # of entries that are kept, mostly 1 / (1 − rate)
    key0: int
    key1: int
    limit: int  # which an entry's hash has to reach to be kept; 0 for no dropout


def draw_mask(rate: float, rng: np.random.Generator | None, factor: float = 1.0) -> Dropout:
    """Draw the mask of a rate, and of kept entries times `factor`. Without a generator, or at rate 0, all are kept."""
    rate = 0.0 if rng is None else rate
    keys = draw_keys(rng) if rate else (0, 0)
    return Dropout(factor / (1 - rate), *keys, int(rate * 2**32))


def sigmoid(x):
    """Return 1 / (1 + exp(−x)), computed from exp(−|x|), which cannot overflow."""
    one = np.float32(1)  # a plain 1 would make it float64
    z = math.exp(-abs(x))
    return (one if x >= 0 else z) / (one + z)


def kept(number, key0, key1, limit):
    """Return whether dropout keeps entry `number`, by the hash of `tinyprune.ops.dropout.keep_mask`.

    Keys and limit, see `Dropout`, are uint32. Numba widens each sum and product to 64 bits; `u32` narrows it again at
    each step, so that LLVM works on twice as many entries at once. The factors have 64 bits so that NumPy does not warn
    of an overflow; a compiler sees that only 32 are used.
    """
    u32, u64 = np.uint32, np.uint64
    h = u32(u32(number) ^ key0)
    h = u32(u32(h ^ u32(h >> u32(17))) * u64(0xED5AD4BB))
    h = u32(h ^ key1)
    h = u32(u32(h ^ u32(h >> u32(11))) * u64(0xAC4C1B51))
    h = u32(u32(h ^ u32(h >> u32(15))) * u64(0x31848BAB))
    return u32(h ^ u32(h >> u32(14))) >= limit


def adam_constants(real: Any, beta1: float, beta2: float, eps: float, step: float, grad_scale: float) -> tuple:
    """Return the constants of `adam` in the arrays' type `real`: one float64 would make all of it float64."""
    corrections = real(1 - beta1**step), real(1 - beta2**step)
    return real(grad_scale), real(beta1), real(1 - beta1), real(beta2), real(1 - beta2), *corrections, real(eps)


def adam(grad, m, v, constants):
    """Return one entry's new m and v and its m̂ / (√v̂ + eps). See `tinyprune.ops.adamw`."""
    grad_scale, m_keep, m_take, v_keep, v_take, m_correction, v_correction, eps = constants
    g = grad_scale * grad
    m = m_keep * m + m_take * g
    v = v_keep * v + v_take * (g * g)
    return m, v, m / m_correction / (math.sqrt(v / v_correction) + eps)
