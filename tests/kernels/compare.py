"""What tests of several backends share: arguments of attention, and comparison of whatever operations return."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinyprune.kernels.gpu import what_is_missing, why_unusable

# Where CUDA's kernels run: on the GPU that is here, or else on the emulator, which takes long; None if neither can be.
GPU = "cuda" if why_unusable() is None else "cuda-emulated" if what_is_missing() is None else None
DEVICES = [pytest.param(GPU, marks=pytest.mark.gpu if GPU == "cuda" else pytest.mark.slow)] if GPU else []

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12, np.complex128: 1e-12}


def attention_arguments(seed, B, H, T, M, Dh, N, relative, gate, dtype):
    """Standard normal q, k, v, r, u, w, pk, pv (None where there are none), the gates and dout."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    S = M + T
    x = [normal(B, T, H, Dh), normal(B, S, H, Dh), normal(B, S, H, Dh)]
    x += [normal(S, H, Dh), normal(H, Dh), normal(H, Dh)] if relative else [None] * 3
    x += [normal(H, N, Dh), normal(H, N, Dh)] if N else [None] * 2
    x.append(None if gate is None else np.resize(np.array(gate, dtype), H))
    return x, normal(B, T, H, Dh)


def attention_results(module, x, dout, **options):
    """Output, gradients, and the head outputs `o` that the cache shows, by name."""
    out, cache = module.attention_forward(*x, **options)
    names = ("out", "dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv", "dgate")
    found = out, *module.attention_backward(dout, cache)
    return dict(zip(names, found, strict=True)) | {"o": cache.o}


def assert_errors_like(got, rounded, exact):
    """Where rounding the scores themselves costs digits, the textbook's own errors are the measure.

    A few times as much, since backward has the weights from a rounded log-sum-exp.
    """
    for name, reference in exact.items():
        errors = [np.linalg.norm((y[name] - reference).ravel()) for y in (got, rounded)]
        assert errors[0] <= 20 * errors[1], (name, errors)


def adamw_update(ops, *arrays, lr, decay, constants):
    given = {"multipliers": [1.0], "decays": [decay], "constants": constants}
    return ops.adamw_updates(*([x] for x in arrays), lr=lr, **given)


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
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()
