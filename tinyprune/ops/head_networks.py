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

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.linear import rows


class Kept(NamedTuple):
    """The cache. `r` holds the units, whatever the gates."""

    r: NDArray  # (all positions, H·N); of a compiled backend (..., H·N)
    x: NDArray | None  # (..., D); None if the parameters are frozen
    pk: NDArray  # (H, N, D), and so pv
    pv: NDArray
    weights: NDArray  # c · g, (H,)
    values: Any  # c · g_h · pv_h, (H·N, D); None if the parameters are frozen
    gated: bool
    scale: float
    shape: tuple[int, ...]  # of x


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
    """Add up what the heads' nets make of the stream.

    Args:
        x: activations, (..., D), any float or complex dtype.
        pk: keys, (H, N, D).   pb: biases, (H, N).   pv: values, (H, N, D).
        bo: bias of the sum, (D,), which belongs to no head.
        gate: (H,), or None for all ones.
        scale: output scaling c.
        frozen: whether pk, pb, pv and bo get no gradients. Then x is not kept; x and the gates still get theirs.

    Returns:
        out: (..., D), dtype of `x`.
        cache: what `head_networks_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_arguments(x, pk, pb, pv, bo, gate)
    H, N, D = pk.shape
    a = rows(x) @ pk.reshape(H * N, D).T + pb.reshape(H * N)
    r = a * (a.real > 0)
    weights = np.full(H, scale, pv.dtype) if gate is None else scale * gate
    values = (weights[:, None, None] * pv).reshape(H * N, D)
    out = (r @ values + bo).reshape(x.shape)
    x_kept, values_kept = (None, None) if frozen else (x, values)
    return out, Kept(r, x_kept, pk, pv, weights, values_kept, gate is not None, scale, x.shape)


def head_networks_backward(dout: NDArray, cache: Kept) -> tuple[NDArray, Any, Any, Any, Any, NDArray | None]:
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
    r, x, pk, pv, weights, values, gated, scale, shape = cache
    H, N, D = pk.shape
    dout_rows = rows(dout)
    dpk = dpb = dpv = dbo = None
    if x is None:
        # out = Σ_h c g_h · r_h pv_h + bo
        products = (dout_rows @ pv.reshape(H * N, D).T).reshape(len(r), H, N)
        dgate = scale * (r.reshape(len(r), H, N) * products).sum((0, 2)) if gated else None
        dr = (weights[:, None] * products).reshape(r.shape)
    else:
        # out = r values + bo
        dbo = dout_rows.sum(0)
        dr = dout_rows @ values.T
        dvalues = (r.T @ dout_rows).reshape(H, N, D)
        # values_h = c g_h pv_h
        dpv = weights[:, None, None] * dvalues
        dgate = scale * (dvalues * pv).sum((1, 2)) if gated else None
    # r = max(a, 0)
    da = dr * (r.real > 0)
    # a = x pkᵀ + pb
    dx = (da @ pk.reshape(H * N, D)).reshape(shape)
    if x is not None:
        dpk = (da.T @ rows(x)).reshape(H, N, D)
        dpb = da.sum(0).reshape(H, N)
    return dx, dpk, dpb, dpv, dbo, dgate


def check_arguments(x: NDArray, pk: NDArray, pb: NDArray, pv: NDArray, bo: NDArray, gate: NDArray | None) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    if pk.ndim != 3:
        raise ValueError(f"pk must be (H, N, D), got {pk.shape}")
    H, N, D = pk.shape
    if x.ndim < 1 or x.shape[-1] != D:
        raise ValueError(f"x must have {D} features to match pk {pk.shape}, got x {x.shape}")
    for name, value, shape in (("pb", pb, (H, N)), ("pv", pv, (H, N, D)), ("bo", bo, (D,)), ("gate", gate, (H,))):
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to match pk {pk.shape}, got {value.shape}")
