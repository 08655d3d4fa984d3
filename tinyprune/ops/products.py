"""Products: the matrix products that all other products are made of, and the sums over rows that go with them.

    matmul            out = a b + bias, then max(out, 0), or the gradient of that, or added to what is there already
    weight_gradient   dW = xᵀ dout              x (..., K)   dout (..., O)   dW (K, O)
    column_sums       out = Σ_rows x            x (..., O)   out (O,)
    matmuls, weight_gradients                   several that do not depend on each other

What comes right after a product is part of it, because a compiled kernel does it before it writes the result. All
leading axes stand for rows. A transposed view, such as `W.T`, is read where it lies. Products that do not depend on
each other are computed together, because a GPU needs only one launch for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


def rows(x: NDArray) -> NDArray:
    """Merge all leading axes: (..., K) → (R, K). Not by reshape(-1, K), which cannot tell R when K is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def matmul(
    a: NDArray,
    b: NDArray,
    *,
    bias: NDArray | None = None,
    relu: bool = False,
    where: NDArray | None = None,
    onto: NDArray | None = None,
) -> NDArray:
    """Multiply the last axis of `a` by the matrix `b`.

    Args:
        a: (..., K), any float or complex dtype.
        b: (K, N); may be a transposed view.
        bias: (N,), added to every row, or None.
        relu: whether negative results become 0.
        where: the result of a ReLU whose gradient is computed, (..., N): the product is 0 where this is not positive.
        onto: (..., N), to which the result is added in place, or None for a new array; not with `relu` or `where`.

    Returns:
        out: (..., N), dtype of `a`; `onto` itself if it is given.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    check_matmul(a, b, bias, relu, where, onto)
    out = (rows(a) @ b).reshape(*a.shape[:-1], b.shape[1])
    if bias is not None:
        out += bias
    if relu:
        out *= out.real > 0
    if where is not None:
        out *= where.real > 0
    if onto is not None:
        onto += out
        return onto
    return out


def weight_gradient(x: NDArray, dout: NDArray) -> NDArray:
    """Return the gradient of W in out = x W: every row of x meets the same row of dout.

    Args:
        x: (..., K), any float or complex dtype.
        dout: (..., O), of as many rows.

    Returns:
        dW: (K, O).

    Raises:
        ValueError: if the leading axes differ.
    """
    check_weight_gradient(x, dout)
    return rows(x).T @ rows(dout)


def column_sums(x: NDArray) -> NDArray:
    """Sum over all rows: the gradient of a bias.

    Args:
        x: (..., O), at least one axis, any float or complex dtype.

    Returns:
        out: (O,).
    """
    check_rows("x", x)
    return rows(x).sum(0)


def matmuls(ops: Engine, products: Iterable[tuple[NDArray, NDArray, NDArray | None]]) -> list[NDArray]:
    """Compute several products that do not depend on each other, a b + bias of each (a, b, bias), as `matmul` does."""
    return [ops.matmul(a, b, bias=bias) for a, b, bias in products]


def weight_gradients(
    ops: Engine, pairs: Iterable[tuple[NDArray, NDArray]], summed: Iterable[NDArray]
) -> tuple[list[NDArray], list[NDArray]]:
    """Compute the gradients of several weights and biases.

    Args:
        ops: computes the products; `ops.weight_gradients` passes itself.
        pairs: of each weight x and dout, as in `weight_gradient`.
        summed: for each bias the array whose `column_sums` are its gradient.
    """
    return [ops.weight_gradient(x, dout) for x, dout in pairs], [ops.column_sums(x) for x in summed]


def check_rows(name: str, x: Any) -> None:
    """Raise ValueError unless `x` has at least one axis."""
    check_shapes(f"{name}: ... O", x)


def check_matmul(a: NDArray, b: NDArray, bias: Any, relu: bool, where: Any, onto: Any) -> None:
    """Raise ValueError, naming the argument, unless everything fits together."""
    check_shapes("a: ... K, b: K N, bias?: N, where?: ... N, onto?: ... N", a, b, bias, where, onto)
    if onto is not None and (relu or where is not None):
        raise ValueError("onto must be None with relu or where: what is there already would have to pass the ReLU, too")


def check_weight_gradient(x: NDArray, dout: NDArray) -> None:
    """Raise ValueError, naming the argument, unless both have the same rows."""
    check_shapes("x: ... K, dout: ... O", x, dout)
