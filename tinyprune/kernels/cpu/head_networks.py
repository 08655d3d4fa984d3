"""Head networks: the heads' feed-forward nets, which read the stream. See `tinyprune.ops.head_networks`.

    for r: h[r] = max(x[r] · pkᵀ + pb, 0);  out[r] = Σ_h c · g_h · h_h[r] · pv_h + bo

All heads' units lie one after the other in memory, so the two products are those of one feed-forward block, see
`matmul` and `feedforward`. The gates multiply the values, which are few, and not the units, one for each position.
Without gates the values are read where they lie: a copy would take longer than a single token's products. Where
parameters are frozen, backward multiplies by the gates only after its product, which dgate needs without them.
"""

import math
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, check_gradient, flat
from tinyprune.kernels.cpu.feedforward import rectify, rectify_gradient
from tinyprune.kernels.cpu.jit import parallel_kernel
from tinyprune.kernels.cpu.linear import column_sums, matrix
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.ops.head_networks import Kept, check_arguments


@parallel_kernel
def frozen_gradient(products, units, weights, da):
    """Set da = weights_h · products where units > 0, and · 0 elsewhere, then products *= units; all (R, H, N)."""
    R, H, N = units.shape
    zero, one = units.dtype.type(0), units.dtype.type(1)
    for r in prange(R):
        for h in range(H):
            for i in range(N):
                da[r, h, i] = weights[h] * products[r, h, i] * (one if units[r, h, i] > zero else zero)
                products[r, h, i] *= units[r, h, i]


def head_networks_forward(
    x: NDArray,
    pk: NDArray,
    pb: NDArray,
    pv: NDArray,
    bo: NDArray,
    gate: NDArray | None = None,
    *,
    scale: float = 1.0,
    frozen: bool = False,
) -> tuple[NDArray, Kept]:
    """Add up what the heads' nets make of the stream, as `ops.head_networks_forward`; float32 or float64."""
    check_floats(x=x, pk=pk, pb=pb, pv=pv, bo=bo, **({} if gate is None else {"gate": gate}))
    check_arguments(x, pk, pb, pv, bo, gate)
    H, N, D = pk.shape
    keys = pk.reshape(H * N, D)
    units = matmul(matrix(x), keys, transpose_b=True, bias=pb.reshape(H * N))
    rectify(units.reshape(-1))
    weights = np.full(H, scale, pv.dtype) if gate is None else (scale * gate).astype(pv.dtype)
    values = pv.reshape(H * N, D)
    if gate is not None or scale != 1.0:
        values = workspace.empty((H * N, D), pv.dtype)
        np.multiply(weights[:, None, None], pv, out=values.reshape(H, N, D))
    out = matmul(units, values, bias=bo)
    x_kept, values_kept = (None, None) if frozen else (x, values)
    kept = Kept(units, x_kept, pk, pv, weights, values_kept, gate is not None, scale, x.shape)
    return out if x.ndim > 1 else out[0], kept


def head_networks_backward(dout: NDArray, cache: Kept) -> tuple[NDArray, Any, Any, Any, Any, NDArray | None]:
    """Return the gradients of `head_networks_forward`, as `ops.head_networks_backward`."""
    units, x, pk, pv, weights, values, gated, scale, shape = cache
    check_gradient(dout, shape, pk.dtype)
    H, N, D = pk.shape
    rows = matrix(dout)
    da = workspace.empty(units.shape, units.dtype)
    if x is None:
        # out = Σ_h c g_h · units_h pv_h + bo
        products = matmul(rows, pv.reshape(H * N, D), transpose_b=True)
        by_head = math.prod(shape[:-1]), H, N
        frozen_gradient(products.reshape(by_head), units.reshape(by_head), weights, da.reshape(by_head))
        dgate = scale * column_sums(products).reshape(H, N).sum(1) if gated else None
        dx = matmul(da, pk.reshape(H * N, D))
        return dx if len(shape) > 1 else dx[0], None, None, None, None, dgate
    # out = units values + bo
    dunits = matmul(rows, values, transpose_b=True)
    dvalues = matmul(units, rows, transpose_a=True).reshape(H, N, D)
    # values_h = c g_h pv_h
    dpv, dgate = dvalues, None
    if gated:
        dpv = workspace.empty(pv.shape, pv.dtype)
        np.multiply(dvalues, pv, out=dpv)
        dgate = scale * dpv.reshape(H, N * D).sum(1)
    if gated or scale != 1.0:
        np.multiply(weights[:, None, None], dvalues, out=dpv)
    # units = max(a, 0)
    rectify_gradient(flat(dunits), flat(units), da.reshape(-1))
    # a = x pkᵀ + pb
    dx = matmul(da, pk.reshape(H * N, D))
    dpk = matmul(da, matrix(x), transpose_a=True).reshape(H, N, D)
    return dx if len(shape) > 1 else dx[0], dpk, column_sums(da).reshape(H, N), dpv, column_sums(rows), dgate
