"""Rows: which of them an operation reads, where they go, and what they are multiplied by. Axis 0 runs over rows.

    take_rows       out[i] = x[index[i]]
    add_rows        out[index[i]] += rows[i]                  in place, all places different
    set_rows        out[i] = rows[i]                          in place
    sum_rows        out[v] = Σ_{i: index[i] = v} rows[i]      places may come several times
    multiply_rows   out[i] = factors[i] · x[i]
    row_dots        out[i] = factor · Σ_j x[i, j] y[i, j]

The adaptive vocabulary treats the rows of each cluster of words on its own; a head's values are multiplied by its gate.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape
from tinyprune.ops.shapes import check_shapes


def take_rows(x: NDArray, index: NDArray) -> NDArray:
    """Copy rows.

    Args:
        x: (R, ...), any float or complex dtype.
        index: integers in 0 … R−1, (n,), in any order.

    Returns:
        out: (n, ...).

    Raises:
        ValueError: if a number of `index` is not an integer or out of range.
    """
    check_rows_index(index, len(x))
    return x[index]


def add_rows(x: NDArray, index: NDArray, rows: NDArray) -> NDArray:
    """Add `rows` to the rows `index` of `x`, in place.

    Args:
        x: (R, D), written to.
        index: integers in 0 … R−1, (n,), all different.
        rows: (n, D), dtype of `x`.

    Returns:
        `x` itself.

    Raises:
        ValueError: if a number of `index` is out of range or the shapes do not fit together.
    """
    check_rows_index(index, len(x))
    check_each_row(x, index, rows)
    x[index] += rows
    return x


def set_rows(x: NDArray, rows: NDArray) -> None:
    """Copy `rows` into `x`, a view of some rows of a larger array.

    Args:
        x: any shape, written to.
        rows: shape and dtype of `x`.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(x=x, rows=rows)
    x[...] = rows


def sum_rows(rows: NDArray, index: NDArray, n: int) -> NDArray:
    """Sum the rows of each place.

    Sorting brings equal places together, so that each sum is one slice, always in the same order.

    Args:
        rows: (R, D), any float or complex dtype.
        index: the place of each row, integers in 0 … n−1, (R,).
        n: places.

    Returns:
        out: (n, D); zeros where no row belongs.

    Raises:
        ValueError: if a number of `index` is out of range, or there is not one for each row.
    """
    check_rows_index(index, n)
    check_each_row(rows, index, rows)
    total = np.zeros((n, rows.shape[-1]), rows.dtype)
    if index.size:
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        total[present] = np.add.reduceat(rows[order], starts, axis=0)
    return total


def multiply_rows(x: NDArray, factors: NDArray) -> NDArray:
    """Multiply each row by its factor.

    Args:
        x: (R, ...), any float or complex dtype.
        factors: (R,).

    Returns:
        out: shape of `x`.

    Raises:
        ValueError: if there is not one factor for each row.
    """
    check_factors(x, factors)
    return factors.reshape(-1, *(1,) * (x.ndim - 1)) * x


def row_dots(x: NDArray, y: NDArray, factor: float = 1.0) -> NDArray:
    """Return the sum of products of each row: the gradient of `multiply_rows` with respect to the factors.

    Args:
        x, y: (R, ...), of the same shape, any float or complex dtype.
        factor: multiplies every sum.

    Returns:
        out: (R,).

    Raises:
        ValueError: if the shapes differ or have fewer than two axes.
    """
    check_row_dots(x, y)
    return factor * (x * y).sum(tuple(range(1, x.ndim)))


def check_ids(ids: NDArray, V: int, name: str = "ids") -> None:
    """Raise ValueError unless `ids` are integers in 0 … V−1 (NumPy would silently take −1 for the last row)."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got dtype {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= V):
        raise ValueError(f"{name} must lie in 0 … {V - 1}, got {ids.min()} … {ids.max()}")


def check_rows_index(index: Any, n: int) -> None:
    """Raise ValueError unless `index` is (n,), integers in 0 … n−1 (NumPy would silently take −1 for the last row)."""
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise ValueError(f"index must be 1-D, integers, got {index.dtype} {index.shape}")
    check_ids(index, n, "index")


def check_each_row(x: NDArray, index: NDArray, rows: NDArray) -> None:
    """Raise ValueError unless `rows` has one row as wide as those of `x` for each number of `index`."""
    check_shapes("index: n, rows: n D, x: R D", index, rows, x)


def check_factors(x: NDArray, factors: NDArray) -> None:
    """Raise ValueError unless there is one factor for each row of `x`."""
    if x.ndim < 1 or factors.shape != x.shape[:1]:
        raise ValueError(f"factors must have shape {x.shape[:1]} to match x {x.shape}, got {factors.shape}")


def check_row_dots(x: NDArray, y: NDArray) -> None:
    """Raise ValueError unless both have the same shape, of at least two axes."""
    check_same_shape(x=x, y=y)
    if x.ndim < 2:
        raise ValueError(f"x must have at least two axes, got {x.shape}")


def concatenate(arrays: Sequence[NDArray], axis: int = 0) -> NDArray:
    """Put arrays one after the other along an axis, into a new array.

    Args:
        arrays: at least one, any float or complex dtype; alike in all other axes.
        axis: −1 or at least 0.

    Raises:
        ValueError: if there is none, or their other axes differ.
    """
    check_concatenate(arrays, axis)
    return np.concatenate(arrays, axis)


def check_concatenate(arrays: Sequence[NDArray], axis: int) -> None:
    """Raise ValueError unless there is at least one array and all are alike in every axis but `axis`."""
    if not arrays:
        raise ValueError("arrays must be at least one, got none")

    def others(x: NDArray) -> list[int]:
        return [n for i, n in enumerate(x.shape) if i != axis % x.ndim]

    first = arrays[0]
    for i, x in enumerate(arrays):
        if x.ndim != first.ndim or not -1 <= axis < max(x.ndim, 1) or not x.ndim or others(x) != others(first):
            raise ValueError(
                f"arrays[{i}] must have the shape of arrays[0], {first.shape}, except along axis {axis}, got {x.shape}"
            )
