"""What `tinyprune bench ladder` times: a rung of one of the ladders in `tinyprune.kernels.ladder`."""

from __future__ import annotations

from typing import Any

from tinyprune.bench.inputs import attention_arguments, matrices
from tinyprune.bench.shapes import model_shape
from tinyprune.bench.work import Work
from tinyprune.kernels.ladder import attention as attention_ladder
from tinyprune.kernels.ladder import matmul as matmul_ladder


def matmul(rung: str, n: int) -> Work:
    """The product of two n × n matrices."""
    multiply = matmul_ladder.RUNGS[rung]
    a, b = matrices(n, n, n, "A·B")
    return Work(lambda: multiply(a, b), lambda: {"out": multiply(a, b)})


def attention(rung: str, **shape: Any) -> Work:
    """Attention forward; see `tinyprune.bench.shapes.model_shape` for `shape`, which has to have all parts."""
    attend = attention_ladder.RUNGS[rung]
    shape = model_shape(**shape)
    arrays, _ = attention_arguments(shape)
    span = shape.config.M + shape.config.T if shape.config.span is None else shape.config.span
    return Work(lambda: attend(**arrays, span=span), lambda: {"out": attend(**arrays, span=span)})
