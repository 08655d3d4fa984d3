"""Comparison of whatever operations return: arrays, numbers, None, and tuples and lists of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12, np.complex128: 1e-12}


def adamw_update(ops, *arrays, lr, decay, constants):
    """AdamW's update of a single parameter."""
    return ops.adamw_updates(*([x] for x in arrays), lrs=[lr], decays=[decay], constants=constants)


def leaves(value: Any) -> list:
    """All arrays and numbers in a nest of tuples and lists, and None."""
    return [x for item in value for x in leaves(item)] if isinstance(value, list | tuple) else [value]


def mapped(function: Callable, value: Any) -> Any:
    """`value` with the function of every array in it; everything else as it is."""
    if isinstance(value, dict):
        return {name: mapped(function, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, item) for item in value)
    return function(value) if hasattr(value, "dtype") else value


def assert_close(got: Any, expected: Any, dtype: type) -> None:
    """Every array of `got` is of `dtype` and as near to that of `expected` as the tolerance times its largest entry."""
    for one, other in zip(leaves(got), leaves(expected), strict=True):
        if isinstance(other, float | None) and not isinstance(other, np.generic):
            assert one is None if other is None else type(one) is float
        else:
            assert one.dtype == dtype and one.shape == other.shape
        if other is None or not np.size(other):
            continue
        finite = np.isfinite(other)
        size = np.abs(other[finite]).max() if np.any(finite) and np.ndim(other) else np.abs(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE[dtype] * max(1.0, size))


def assert_same_bits(got: Any, expected: Any) -> None:
    """Arrays and numbers, or tuples and lists of them, equal to the last bit."""
    for one, other in zip(leaves(got), leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
