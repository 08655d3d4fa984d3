"""Slices: what some heads own of a parameter, taken out of it and put back.

Along one axis a parameter is a row of slices, `width` entries for each head. With index = (h_0, h_1, …)

    take:  part[…, i·width + d, …] = x[…, h_i·width + d, …]               d = 0 … width − 1
    put:   x[…, h_i·width + d, …] = part[…, i·width + d, …]               and 0 where no h_i points to

Put is the reverse of take for gradients: a head that was left out has no part in the loss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def take_slices(x: NDArray, index: Sequence[int] | NDArray, axis: int, width: int = 1) -> NDArray:
    """Take the slices `index`, in this order.

    Args:
        x: any float or complex dtype; its `axis` is n·width long.
        index: which slices, each 0 … n−1.
        axis: the one that runs over slices, at least 0.
        width: entries in a slice, at least 1.

    Returns:
        part: a copy, `axis` len(index)·width long.

    Raises:
        ValueError: if `index` is out of range or `axis` not n·width long.
    """
    n = slice_count("x", x, axis, width)
    check_index(index, n)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    part = np.take(x.reshape(*before, n, width, *after), np.asarray(index, np.int64), axis)
    return part.reshape(*before, len(index) * width, *after)


def put_slices(part: NDArray, index: Sequence[int] | NDArray, axis: int, n: int, width: int = 1) -> NDArray:
    """Put slices into zeros, at the places `index`.

    Args:
        part: any float or complex dtype; its `axis` is len(index)·width long.
        index: where they go, each 0 … n−1; all different.
        axis: the one that runs over slices, at least 0.
        n: how many slices the whole has.
        width: entries in a slice, at least 1.

    Returns:
        x: a new array, `axis` n·width long.

    Raises:
        ValueError: if `index` is out of range or has not one number for each slice of `part`.
    """
    check_part(part, index, axis, width)
    check_index(index, n)
    before, after = part.shape[:axis], part.shape[axis + 1 :]
    x = np.zeros((*before, n, width, *after), part.dtype)
    place: tuple[Any, ...] = (*[slice(None)] * axis, np.asarray(index, np.int64))
    x[place] = part.reshape(*before, len(index), width, *after)
    return x.reshape(*before, n * width, *after)


def check_index(index: Sequence[int] | NDArray, n: int) -> None:
    """Raise ValueError unless all numbers are in 0 … n−1."""
    if len(index) and not 0 <= min(index) <= max(index) < n:
        raise ValueError(f"index must lie in 0 … {n - 1}, got {list(index)}")


def slice_count(name: str, x: NDArray, axis: int, width: int) -> int:
    """Return how many slices `x` has. Raises ValueError if its axis does not exist or ends within one."""
    if not 0 <= axis < x.ndim or width < 1 or x.shape[axis] % width:
        raise ValueError(f"{name} must have whole slices of {width} entries along axis {axis}, got {x.shape}")
    return x.shape[axis] // width


def check_part(part: NDArray, index: Sequence[int] | NDArray, axis: int, width: int) -> None:
    """Raise ValueError unless `part` has one slice for each number of `index`."""
    if slice_count("part", part, axis, width) != len(index):
        raise ValueError(
            f"part must have {len(index)} slices of {width} entries along axis {axis}, one for each number of index, "
            f"got {part.shape}"
        )
