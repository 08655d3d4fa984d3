"""Blocks of units: a linear map whose inputs, the units of a feed-forward block, have a gate for every U neighbours.

    out = c · Σ_b g_b · h_b W_b + bias         h_b (..., U)   W_b (U, D)   bias (D,)   out (..., D)

What belongs to a head is gated in attention; a unit of an ordinary feed-forward block belongs to none. Here U of them
share a gate g_b, so that they can be closed and removed together as heads are. Without gates it is `ops.linear`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


class BlocksCache(NamedTuple):
    """What `blocks_backward` needs. `h` holds the units before their gates."""

    h: Any  # (..., F); None if the matrix is frozen and there are no gates
    W: NDArray  # (F, D)
    gated: NDArray  # c · g_b · W_b, (F, D)
    weights: NDArray | None  # c · g, (G,)
    scale: float
    biased: bool
    frozen: bool


def blocks_forward(
    ops: Engine,
    h: NDArray,
    W: NDArray,
    b: NDArray | None = None,
    gate: NDArray | None = None,
    *,
    scale: float = 1.0,
    frozen: bool = False,
) -> tuple[NDArray, BlocksCache]:
    """Multiply each block of units by its gate, and the last axis by `W`; add `b` if there is one.

    Args:
        ops: computes the products; `ops.blocks_forward` passes itself.
        h: units, (..., F), any float or complex dtype.
        W: (F, D).
        b: (D,), or None.
        gate: (G,), of G blocks with F / G units each, in main memory whatever the engine; None for all ones.
        scale: output scaling c, only with gates.
        frozen: whether W and b get no gradients; units and gates still get theirs.

    Returns:
        out: (..., D), dtype of `h`.
        cache: what `blocks_backward` needs.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_shapes("h: ... F, W: F D, b?: D, gate?: G", h, W, b, gate)
    gated, weights = W, None
    if gate is not None:
        if len(W) % max(len(gate), 1):
            raise ValueError(f"gate must have as many units for each of its {len(gate)} blocks, got F = {len(W)}")
        weights = scale * gate
        gated = ops.multiply_rows(by_block(W, len(gate)), weights).reshape(W.shape)
    out = ops.matmul(h, gated, bias=b)
    return out, BlocksCache(None if frozen and gate is None else h, W, gated, weights, scale, b is not None, frozen)


def blocks_backward(
    ops: Engine, dout: NDArray, cache: BlocksCache, *, where: NDArray | None = None
) -> tuple[NDArray, Any, Any, Any]:
    """Return the gradients of `blocks_forward` in argument order.

    A gate multiplies h_b W_b, so that dgate_b = Σ dout · (h_b W_b), which has two groupings, as in `ops.head_networks`:

        dgate_b = Σ (h_bᵀ dout) · W_b = Σ h_b · (dout W_bᵀ).

    The first has its product from dW. A frozen W needs no dW; then the second has its product from dh.

    Args:
        dout: gradient of the loss with respect to `out`, (..., D). Not modified.
        where: h, if a ReLU has made it: dh is then that before the ReLU, 0 where h is.

    Returns:
        dh: (..., F).   dW: (F, D).   db: (D,), or None.   dgate: (G,), or None. dW and db are None if they are frozen.
    """
    h, W, gated, weights, scale, biased, frozen = cache
    if frozen and weights is not None:
        # out = Σ_b c g_b · h_b W_b + bias
        dh, dgate = ops.units_gradient(ops.matmul(dout, W.T), h, weights, scale, relu=where is not None)
        return dh, None, None, dgate
    # out = h gated + bias
    dh = ops.matmul(dout, gated.T, where=where)
    if frozen:
        return dh, None, None, None
    dgated = ops.weight_gradient(h, dout)
    db = ops.column_sums(dout) if biased else None
    if weights is None:
        return dh, dgated, db, None
    # gated_b = c g_b W_b
    dgated = by_block(dgated, len(weights))
    dW = ops.multiply_rows(dgated, weights).reshape(W.shape)
    return dh, dW, db, ops.row_dots(dgated, by_block(W, len(weights)), scale)


def by_block(W: NDArray, G: int) -> NDArray:
    """Split the rows of a matrix into blocks: (F, D) → (G, F / G, D)."""
    return W.reshape(G, len(W) // max(G, 1), W.shape[1])
