"""What `tinyprune bench cuda` times beside products and attention: operations one by one, and the device's limits.

Each is forward and backward together, at one shape, as the model calls it. With the backend numpy or numba the same
works run on the processor, which the tests make use of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench.inputs import parameters
from tinyprune.bench.ours import in_a_row
from tinyprune.bench.shapes import model_shape
from tinyprune.bench.training import BETAS, EPS, LR, WEIGHT_DECAY
from tinyprune.bench.work import Work
from tinyprune.kernels.backend import get_backend


def normal(*shape: int) -> NDArray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def whole_numbers(below: int, size: int) -> NDArray:
    """`size` tokens."""
    return np.random.default_rng(1).integers(0, below, size)


def layernorm(backend: str, rows: int, D: int) -> Work:
    """LayerNorm of (rows, D)."""
    ops = get_backend(backend)
    x, scale, bias = (ops.to_device(a) for a in (normal(rows, D), np.ones(D, np.float32), np.zeros(D, np.float32)))

    def run() -> Any:
        out, cache = ops.layernorm_forward(x, scale, bias)
        return ops.layernorm_backward(out, cache)

    return in_a_row(backend, run)


def cross_entropy(backend: str, rows: int, V: int) -> Work:
    """The loss of (rows, V) logits. They may be overwritten, as in training, so each run's are what the last one left:
    other numbers, the same work."""
    ops = get_backend(backend)
    logits, targets = ops.to_device(normal(rows, V)), whole_numbers(V, rows)

    def run() -> Any:
        _, cache = ops.cross_entropy_forward(logits, targets, overwrite=True)
        return ops.cross_entropy_backward(1.0, cache)

    return in_a_row(backend, run)


def embedding(backend: str, tokens: int, V: int, D: int) -> Work:
    """Rows of a table (V, D), and their gradients' sums."""
    ops = get_backend(backend)
    table, ids = ops.to_device(normal(V, D)), whole_numbers(V, tokens)

    def run() -> Any:
        out, cache = ops.embedding_forward(ids, table)
        return ops.embedding_backward(out, cache)

    return in_a_row(backend, run)


def adamw(backend: str, name: str) -> Work:
    """One update of every parameter of the model called `name`."""
    ops = get_backend(backend)
    zeros = np.zeros_like
    tensors = [
        [ops.to_device(x) for x in (param, param.copy(), zeros(param), zeros(param))]
        for param in parameters(model_shape(name)).values()
    ]
    options = {"lr": LR, "decay": WEIGHT_DECAY, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "step": 1}

    def run() -> None:
        for param, grad, m, v in tensors:
            ops.adamw_update(param, grad, m, v, **options)

    return in_a_row(backend, run)


def copy(entries: int) -> Work:
    """The GPU's limit: as many entries as asked for, read and written."""
    from tinyprune.bench import limits
    from tinyprune.kernels.cuda.device.array import empty, to_device

    x, out = to_device(np.zeros(entries, np.float32)), empty(entries)
    return in_a_row("cuda", lambda: limits.copy(x, out))


def multiply_adds(threads: int, steps: int) -> Work:
    """The GPU's limit: so many threads with so many multiply-adds each, in registers."""
    from tinyprune.bench import limits
    from tinyprune.kernels.cuda.device.array import empty

    out = empty(threads)
    return in_a_row("cuda", lambda: limits.multiply_and_add(steps, out))
