"""Head networks: the heads' feed-forward nets, which read the stream. See `tinyprune.ops.head_networks`.

All heads' units lie one after the other in memory, so the two products are those of one feed-forward block, see
`feedforward`. The gates multiply the values, which are few, and not the units, one for each position. Where
parameters are frozen, backward multiplies by the gates only after its product, which dgate needs without them.
"""

import math
from typing import NamedTuple

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous, scaled
from tinyprune.kernels.cuda.parts.sums import row_dots
from tinyprune.kernels.cuda.products.primitives import column_sums, matmul, weight_gradient
from tinyprune.ops.head_networks import check_arguments

THREADS = 256


class Kept(NamedTuple):
    """The cache. `r` holds the units, (…, H·N), whatever the gates."""

    r: DeviceArray
    x: DeviceArray | None  # None if the parameters are frozen
    pk: DeviceArray
    pv: DeviceArray
    gate: DeviceArray | None
    scale: float
    values: DeviceArray | None  # (H·N, D); None if the parameters are frozen
    precision: str
    shape: tuple[int, ...]  # of x


@kernel(floats, floats, int32, int32, float32, int32, floats, threads=THREADS)
def weigh(x, gate, H, width, scale, size, out):
    """Compute out = scale · gate[h] · x, flat (..., H, width): a thread for each number."""
    i = cuda.grid(1)
    if i < size:
        out[i] = scale * gate[i // width % H] * x[i]


@kernel(floats, floats, int32, threads=THREADS)
def rectify_gradient(dh, h, size):
    """dh *= 1 where h > 0, else 0, in place, flat: a thread for each number."""
    i = cuda.grid(1)
    if i < size:
        dh[i] *= float32(1) if h[i] > float32(0) else float32(0)


def weighed(x: DeviceArray, gate: DeviceArray | None, scale: float, width: int) -> DeviceArray:
    """Multiply x, with `width` numbers for each head in turn, by `scale` and by the heads' gates, if there are any."""
    if gate is None:
        return x if scale == 1 else scaled(x, scale, "scale")
    out = empty(x.shape)
    weigh(blocks(x.size, THREADS), x, contiguous(gate), gate.size, width, np.float32(scale), x.size, out)
    return out


def head_networks_forward(
    x: DeviceArray,
    pk: DeviceArray,
    pb: DeviceArray,
    pv: DeviceArray,
    bo: DeviceArray,
    gate: DeviceArray | None = None,
    *,
    scale: float = 1.0,
    frozen: bool = False,
    precision: str = "float32",
) -> tuple[DeviceArray, Kept]:
    """Add up what the heads' nets make of the stream: `ops.head_networks_forward` for float32.

    For `precision` see `linear`.
    """
    check_floats(x=x, pk=pk, pb=pb, pv=pv, bo=bo, **({} if gate is None else {"gate": gate}))
    check_arguments(x, pk, pb, pv, bo, gate)
    H, N, D = pk.shape
    pk, pb, pv = contiguous(pk), contiguous(pb), contiguous(pv)
    keys, bias = pk.reshape(H * N, D), pb.reshape(H * N)
    units = matmul(x, keys.T, bias=bias, relu=True, precision=precision)
    values = weighed(pv, gate, scale, N * D).reshape(H * N, D)
    out = matmul(units, values, bias=contiguous(bo), precision=precision)
    x_kept, values_kept = (None, None) if frozen else (x, values)
    return out, Kept(units, x_kept, pk, pv, gate, scale, values_kept, precision, x.shape)


def head_networks_backward(dout: DeviceArray, cache: Kept) -> tuple[DeviceArray | None, ...]:
    """Return the gradients of `head_networks_forward` in argument order, as `ops.head_networks_backward`."""
    units, x, pk, pv, gate, scale, values, precision, shape = cache
    check_gradient(dout, shape)
    H, N, D = pk.shape
    if x is None:
        # out = Σ_h c g_h · units_h pv_h + bo
        products = matmul(dout, pv.reshape(H * N, D).T, precision=precision)
        dgate = None
        if gate is not None:
            by_head = math.prod(units.shape[:-1]), H, N
            dgate = column_sums(row_dots(units.reshape(by_head), products.reshape(by_head), scale))
        da = weighed(products, gate, scale, N)
        rectify_gradient(blocks(da.size, THREADS), da, units, da.size)
        dx = matmul(da, pk.reshape(H * N, D), precision=precision)
        return dx, None, None, None, None, dgate
    # out = units values + bo
    dbo = column_sums(dout)
    # units = max(a, 0)
    da = matmul(dout, values.T, where=units, precision=precision)
    dvalues = weight_gradient(units, dout, precision=precision).reshape(H, N, D)
    # values_h = c g_h pv_h
    dpv = weighed(dvalues, gate, scale, N * D)
    dgate = None if gate is None else row_dots(dvalues.reshape(H, N * D), pv.reshape(H, N * D), scale)
    # a = x pkᵀ + pb
    dx = matmul(da, pk.reshape(H * N, D), precision=precision)
    dpk = weight_gradient(da, x, precision=precision).reshape(H, N, D)
    dpb = column_sums(da).reshape(H, N)
    return dx, dpk, dpb, dpv, dbo, dgate
