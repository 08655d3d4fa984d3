"""Dropout: set a random share of the entries to zero and scale the others up. See `tinyprune.ops.dropout`.

    for i: out[i] = x[i] · (1 / (1 − rate) if kept(i) else 0)

One thread for each entry. The mask is never stored: some fifteen instructions work out an entry's fate where it stands,
in forward and again in backward, where reading a mask back would be bytes to wait for.
"""

from __future__ import annotations

import numpy as np

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.jit import blocks, cuda, device, float32, floats, int32, kernel, uint32
from tinyprune.kernels.formulas import threshold
from tinyprune.ops.dropout import check_rate, draw_keys

THREADS = 256

kept = device(formulas.kept)


@device
def keep_factor(i, factor, key0, key1, limit):
    """What entry i is multiplied by: the factor, or 0 if it is dropped."""
    return factor if kept(i, key0, key1, limit) else float32(0)


@kernel(floats, float32, uint32, uint32, uint32, int32, floats, threads=THREADS, hot=True)
def drop(x, factor, key0, key1, limit, size, out):
    """out[i] = x[i] · factor where kept, x[i] · 0 elsewhere: 0 × NaN and 0 × inf are NaN here as in NumPy."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * keep_factor(i, factor, key0, key1, limit)


def mask_of(rate: float, keys: tuple[int, int], factor: float = 1.0) -> tuple:
    """What `keep_factor` takes after the number of an entry. At rate 0 it is the factor for all, whatever the keys."""
    return np.float32(factor / (1 - rate)), *map(np.uint32, (*keys, threshold(rate)))


def apply(x: DeviceArray, rate: float, keys: tuple[int, int]) -> DeviceArray:
    """A new array: x · keep / (1 − rate)."""
    out = empty(x.shape)
    drop(blocks(x.size, THREADS), contiguous(x), *mask_of(rate, keys), x.size, out)
    return out


def dropout_forward(x: DeviceArray, rate: float, rng: np.random.Generator | None) -> tuple[DeviceArray, tuple]:
    """Drop a share `rate` of `x`: `ops.dropout_forward` for float32."""
    check_rate("rate", rate)
    check_floats(x=x)
    if rng is None or rate == 0:
        return x, (None, 0.0, x.shape)
    keys = draw_keys(rng)
    return apply(x, rate, keys), (keys, rate, x.shape)


def dropout_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `dropout_forward`, as `ops.dropout_backward`: the same entries are dropped, worked out again."""
    keys, rate, shape = cache
    check_gradient(dout, shape)
    if keys is None:
        return dout
    # out = x * keep / (1 - rate)
    return apply(dout, rate, keys)
