"""Head networks: a feed-forward net for each head, which reads the stream and is gated with its head.

    a_h = x pk_hᵀ + pb_h             x (..., D)   pk_h (N, D)   pb_h (N,)
    r_h = max(a_h, 0)                (..., N)
    out = c · Σ_h g_h · r_h pv_h + bo             pv_h (N, D)   bo (D,)   out (..., D)

All-attention lets a head attend to N persistent vectors, keys pk and values pv, beside its context, and leaves out the
feed-forward block. Here keys and values are as wide as the stream, and a ReLU takes the softmax's place: a persistent
vector is a hidden unit of a feed-forward block (Geva et al. 2021, "Transformer feed-forward layers are key-value
memories"). Each head owns N of the H·N units, so that all of them together are that block, and a closed head takes its
share of it along.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape
from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


class HeadNetworksCache(NamedTuple):
    """What `head_networks_backward` needs. `r` holds the units, whatever the gates."""

    r: NDArray  # (..., H·N)
    x: NDArray | None  # (..., D); None if the parameters are frozen
    pk: NDArray  # (H, N, D), and so pv
    pv: NDArray
    values: NDArray  # c · g_h · pv_h, (H·N, D)
    weights: NDArray  # c · g, (H,)
    gated: bool
    scale: float


def head_networks_forward(
    ops: Engine,
    x: NDArray,
    pk: NDArray,
    pb: NDArray,
    pv: NDArray,
    bo: NDArray,
    gate: NDArray | None = None,
    *,
    scale: float = 1.0,
    frozen: bool = False,
) -> tuple[NDArray, HeadNetworksCache]:
    """Add up what the heads' nets make of the stream.

    Args:
        ops: computes the products; `ops.head_networks_forward` passes itself.
        x: activations, (..., D), any float or complex dtype.
        pk: keys, (H, N, D).   pb: biases, (H, N).   pv: values, (H, N, D).
        bo: bias of the sum, (D,), which belongs to no head.
        gate: (H,), in main memory whatever the engine, or None for all ones.
        scale: output scaling c.
        frozen: whether pk, pb, pv and bo get no gradients. Then x is not kept; x and the gates still get theirs.

    Returns:
        out: (..., D), dtype of `x`.
        cache: what `head_networks_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_shapes("pk: H N D, x: ... D, pb: H N, pv: H N D, bo: D, gate?: H", pk, x, pb, pv, bo, gate)
    H, N, D = pk.shape
    r = ops.matmul(x, pk.reshape(H * N, D).T, bias=pb.reshape(H * N), relu=True)
    weights = np.full(H, scale, pv.dtype) if gate is None else scale * gate
    values = (pv if gate is None and scale == 1 else ops.multiply_rows(pv, weights)).reshape(H * N, D)
    out = ops.matmul(r, values, bias=bo)
    return out, HeadNetworksCache(r, None if frozen else x, pk, pv, values, weights, gate is not None, scale)


def head_networks_backward(
    ops: Engine, dout: NDArray, cache: HeadNetworksCache
) -> tuple[NDArray, Any, Any, Any, Any, NDArray | None]:
    """Return the gradients of `head_networks_forward` in argument order.

    A gate multiplies r_h pv_h, so that its gradient is Σ_rows dout · (r_h pv_h). There are two ways to group this:

        dgate_h = Σ (r_hᵀ dout) · pv_h = Σ r_h · (dout pv_hᵀ).

    The first has its product from dpv. Frozen parameters need no dpv; then the second has its product from dr.

    Args:
        dout: gradient of the loss with respect to `out`, (..., D). Not modified.

    Returns:
        dx: (..., D).   dpk: (H, N, D).   dpb: (H, N).   dpv: (H, N, D).
        dbo: (D,).   dgate: (H,), or None. dpk, dpb, dpv and dbo are None if they are frozen.
    """
    r, x, pk, pv, values, weights, gated, scale = cache
    H, N, D = pk.shape
    keys = pk.reshape(H * N, D)
    if x is None:
        # out = Σ_h c g_h · r_h pv_h + bo,  r = max(a, 0)
        products = ops.matmul(dout, pv.reshape(H * N, D).T)
        da, dgates = ops.units_gradient(products, r, weights, scale)
        return ops.matmul(da, keys), None, None, None, None, dgates if gated else None
    # out = r values + bo,  r = max(a, 0)
    da = ops.matmul(dout, values.T, where=r)
    # and a = x pkᵀ + pb
    (dkeys, dvalues), (dpb, dbo) = ops.weight_gradients([(da, x), (r, dout)], [da, dout])
    dpk, dpb, dvalues = dkeys.reshape(H, N, D), dpb.reshape(H, N), dvalues.reshape(H, N, D)
    # values_h = c g_h pv_h
    dpv = dvalues if not gated and scale == 1 else ops.multiply_rows(dvalues, weights)
    dgate: NDArray | None = ops.row_dots(dvalues, pv, scale) if gated else None
    return ops.matmul(da, keys), dpk, dpb, dpv, dbo, dgate


def units_gradient(
    products: NDArray, r: NDArray, weights: NDArray, scale: float, *, relu: bool = True
) -> tuple[NDArray, NDArray]:
    """Return the gradients of the units before their ReLU, and of the gates, where parameters are frozen.

    Args:
        products: dout pv_hᵀ, (..., H·N), which may be overwritten.
        r: the units, (..., H·N).
        weights: c · g, (H,), in main memory.
        scale: output scaling c.
        relu: whether a ReLU has made the units; without one their own gradients are returned.

    Returns:
        da: c g_h · products where r > 0 or without a ReLU, otherwise 0; (..., H·N).
        dgate: c · Σ over all rows and a head's units of r · products, (H,).

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_units(products, r, weights)
    by_head = math.prod(r.shape[:-1]), len(weights), r.shape[-1] // max(len(weights), 1)
    products, units = products.reshape(by_head), r.reshape(by_head)
    da = weights[:, None] * products
    if relu:
        da *= units.real > 0
    return da.reshape(r.shape), scale * (units * products).sum((0, 2))


def check_units(products: NDArray, r: NDArray, weights: NDArray) -> None:
    """Raise ValueError, naming the argument, unless there are as many units for each weight."""
    if r.ndim < 1 or (r.shape[-1] % len(weights) if len(weights) else r.shape[-1]):
        raise ValueError(f"r must have as many units for each of {len(weights)} heads, got {r.shape}")
    check_same_shape(r=r, products=products)
