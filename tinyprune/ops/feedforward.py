"""Feed-forward block of the ordinary Transformer, one hidden layer with a ReLU. (Vaswani et al. 2017, eq. 2)

    a   = x W1 + b1          x (..., D)   W1 (D, F)   b1 (F,)
    h   = max(a, 0)          (..., F)
    out = h W2 + b2          W2 (F, D)    b2 (D,)     out (..., D)

Blocks of the units h may have gates, see `ops.blocks`. All-attention has no such block: its persistent vectors do this
work inside attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def feedforward_forward(
    ops: Engine,
    x: NDArray,
    W1: NDArray,
    b1: NDArray,
    W2: NDArray,
    b2: NDArray,
    gate: NDArray | None = None,
    *,
    scale: float = 1.0,
    frozen: bool = False,
) -> tuple[NDArray, tuple]:
    """Apply two linear maps with a ReLU between them.

    Args:
        ops: computes the products; `ops.feedforward_forward` passes itself.
        x: activations, (..., D), any float or complex dtype.
        W1: (D, F).   b1: (F,).
        W2: (F, D).   b2: (D,).
        gate, scale: of blocks of units, see `ops.blocks`; None for all ones.
        frozen: whether weights and biases get no gradients. Then x is not kept.

    Returns:
        out: (..., D), dtype of `x`.
        cache: what `feedforward_backward` needs; its last entry is that of `blocks_forward`.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_shapes("x: ... D, W1: D F, b1: F, W2: F D, b2: D", x, W1, b1, W2, b2)
    h = ops.matmul(x, W1, bias=b1, relu=True)
    out, outer = ops.blocks_forward(h, W2, b2, gate, scale=scale, frozen=frozen)
    return out, (None if frozen else x, h, W1, outer)


def feedforward_backward(ops: Engine, dout: NDArray, cache: tuple) -> tuple[NDArray, Any, Any, Any, Any, Any]:
    """Return the gradients of `feedforward_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, (..., D). Not modified.

    Returns:
        dx: (..., D).   dW1: (D, F).   db1: (F,).   dW2: (F, D).   db2: (D,).   dgate: (G,), or None. All others but dx
        are None if they are frozen.
    """
    x, h, W1, outer = cache
    # out = h W2 + b2,  h = max(a, 0)
    da, dW2, db2, dgate = ops.blocks_backward(dout, outer, where=h)
    # a = x W1 + b1
    dx = ops.matmul(da, W1.T)
    if x is None:
        return dx, None, None, None, None, dgate
    return dx, ops.weight_gradient(x, da), ops.column_sums(da), dW2, db2, dgate
