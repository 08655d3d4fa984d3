"""Shapes: compare those of arguments with a pattern, which gives each axis a name.

    check_shapes("x: ... K, W: K O, b: O", x, W, b)

Axes of one name are of one length, which the first of them sets. "..." is any number of axes, everywhere the same ones.
"S≥T" is an axis S that is at least as long as T, and "≥2" has no name and is at least 2 long. "H·Dh" is a product, once
its factors are known. "b?" may be None.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any


def check_shapes(pattern: str, *arrays: Any) -> None:
    """Raise ValueError, naming the array, what it must be and what it is, unless all have the shapes of the pattern.

    Args:
        pattern: names of arrays and of their axes.
        arrays: those that it names, in this order; anything with a shape.

    Raises:
        TypeError: if one is None that may not be.
    """
    compare(pattern, tuple([None if x is None else x.shape for x in arrays]))


def check_together(names: str, *arrays: Any) -> None:
    """Raise ValueError unless all of the arrays are given, or none of them."""
    if 0 < sum(x is None for x in arrays) < len(arrays):
        raise ValueError(f"{names} must be given together or not at all")


@lru_cache(4096)  # a training step asks about the same shapes again and again
def compare(pattern: str, shapes: tuple[tuple[int, ...] | None, ...]) -> None:
    """Compare the shapes of `check_shapes`.

    >>> compare("x: ... K, W: K O", ((2, 3, 4), (5, 6)))
    Traceback (most recent call last):
    ValueError: W must have shape (4, O) to match x (2, 3, 4), got (5, 6)
    """
    known: dict[str, Any] = {}  # lengths of the axes so far
    sources: dict[str, str] = {}  # the arrays that they are from
    for part, shape in zip(pattern.split(", "), shapes, strict=True):
        name, axes = part.split(": ")
        if shape is None:
            if name[-1] != "?":
                raise TypeError(f"{name} must be an array, got None")
            continue
        found = lengths(axes.split(), shape, known)
        if found is None:
            earlier = dict.fromkeys(sources[axis] for axis in re.split("[ ·≥]", axes) if axis in sources)
            match = f" to match {' and '.join(earlier)}" * bool(earlier)
            wanted = described(axes.split(), known)
            raise ValueError(f"{name.rstrip('?')} must have shape {wanted}{match}, got {shape}")
        sources |= dict.fromkeys(found.keys() - known.keys(), f"{name.rstrip('?')} {shape}")
        known = found


def lengths(axes: Sequence[str], shape: tuple[int, ...], known: dict[str, Any]) -> dict[str, Any] | None:
    """Return `known` and the lengths of further axes, from a shape; None if it does not fit."""
    known = dict(known)
    if axes[0] == "...":
        count = max(len(shape) - len(axes) + 1, 0)
        if known.setdefault("...", shape[:count]) != shape[:count]:
            return None
        axes, shape = axes[1:], shape[count:]
    if len(axes) != len(shape):
        return None
    for axis, n in zip(axes, shape, strict=True):
        name, _, least = axis.partition("≥")
        if n != length(name, known, n) or n < length(least, known, 0):
            return None
        if name and not name.isdigit():
            known[name] = n
    return known


def length(axis: str, known: dict[str, Any], otherwise: Any) -> Any:
    """Return the length of an axis that is a number, known, or a product of such; `otherwise` for others."""
    factors: list[Any] = [int(factor) if factor.isdigit() else known.get(factor) for factor in axis.split("·")]
    return known.get(axis, otherwise if None in factors else math.prod(factors))


def described(axes: Sequence[str], known: dict[str, Any]) -> str:
    """Return what a shape must be, with the names of axes whose length is open."""
    said: list[str] = []
    for axis in axes:
        name, _, least = axis.partition("≥")
        if axis == "...":
            said += map(str, known.get("...", ["..."]))
        else:
            bound = f" ≥ {length(least, known, least)}" if least else ""
            said.append(str(length(name, known, (name + bound).strip())))
    return f"({', '.join(said)}{',' * (len(said) == 1)})"
