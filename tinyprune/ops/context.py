"""Context: the memory and the segment one after the other, for keys and values. (Dai et al. 2019, §3.2)

    context = [m; x]         m (B, M', D)   x (B, T, D)   context (B, S, D), S = M' + T

The memory was computed for the segment before. No gradient flows into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def context_forward(ops: Engine, m: NDArray | None, x: NDArray) -> tuple[NDArray, tuple]:
    """Put the memory before the segment.

    Args:
        ops: copies; `ops.context_forward` passes itself.
        m: layer inputs before the segment, (B, M', D), or None at the start of a text.
        x: layer inputs of the segment, (B, T, D), any float or complex dtype.

    Returns:
        context: (B, S, D), dtype of `x`; `x` itself, not a copy, if there is no memory.
        cache: what `context_backward` needs.

    Raises:
        ValueError: if `m` is not of the batch and width of `x`.
    """
    check_shapes("x: B T D, m?: B M' D", x, m)
    T = x.shape[1]
    return x if m is None else ops.concatenate([m, x], 1), (T,)


def context_backward(dcontext: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `context_forward` with respect to `x`: the last T rows. None flows into `m`.

    Args:
        dcontext: gradient of the loss with respect to `context`, (B, S, D). Not modified.

    Returns:
        dx: (B, T, D), a view of `dcontext`.
    """
    (T,) = cache
    # context = [m; x]
    return dcontext[:, dcontext.shape[1] - T :]
