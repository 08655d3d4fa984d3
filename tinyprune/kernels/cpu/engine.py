"""The operations that Numba compiles for the processor. The others are those of `tinyprune.ops.engine`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numba

from tinyprune.kernels import linear
from tinyprune.kernels.cpu import (
    activations,
    ahead,
    attention,
    cross_entropy,
    dropout,
    embedding,
    jit,
    joins,
    norms,
    products,
    rotary,
    updates,
)
from tinyprune.ops.engine import Engine

jit.watch_threads()


class Numba(Engine):
    """Kernels for the processor, on NumPy arrays of float32 or float64."""

    name = "numba"
    takes_complex = False
    precisions = ("float32", "bf16")
    compiling = jit.COMPILING
    compiled = jit.COMPILED

    functions_to_compile = staticmethod(jit.functions_of_a_run)
    compilations = staticmethod(jit.compilations)

    @contextmanager
    def compiling_ahead(self) -> Iterator[Engine | None]:
        """See `Machine`: attention is compiled in a second process."""
        if not ahead.worthwhile():
            yield None
            return
        with ahead.second_process():
            yield WithoutAttention()

    def in_precision(self, precision: str) -> Engine:
        """See `Machine`."""
        return {"float32": Numba, "bf16": NumbaBF16}[precision]()

    def decoder(self, config: Any, layers: Any, r: Any, params: Any, places: int, matrices: Any) -> Any:
        """See `Machine`."""
        from tinyprune.kernels.cpu.decoder import Decoder, knows  # what trains needs none

        return Decoder(config, layers, r, params, places, matrices) if knows(config) else None

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """See `Machine`."""
        before = numba.get_num_threads()
        numba.set_num_threads(count)
        try:
            yield
        finally:
            numba.set_num_threads(before)

    # Primitives, in the order of `ops.engine`.
    matmul = staticmethod(products.matmul)
    weight_gradient = staticmethod(products.weight_gradient)
    column_sums = staticmethod(products.column_sums)
    sum_rows = staticmethod(embedding.sum_rows)
    concatenate = staticmethod(joins.concatenate)
    attention_forward = staticmethod(attention.attention_forward)  # type: ignore[assignment]  # another cache
    attention_backward = staticmethod(attention.attention_backward)  # type: ignore[assignment]
    rotate = staticmethod(rotary.rotate)
    layernorm_forward = staticmethod(norms.layernorm_forward)
    layernorm_backward = staticmethod(norms.layernorm_backward)
    rmsnorm_forward = staticmethod(norms.rmsnorm_forward)
    rmsnorm_backward = staticmethod(norms.rmsnorm_backward)
    gelu_forward = staticmethod(activations.gelu_forward)
    gelu_backward = staticmethod(activations.gelu_backward)
    swiglu_forward = staticmethod(activations.swiglu_forward)
    swiglu_backward = staticmethod(activations.swiglu_backward)
    units_gradient = staticmethod(products.units_gradient)
    residual_forward = staticmethod(dropout.residual_forward)
    residual_backward = staticmethod(dropout.residual_backward)
    add = staticmethod(joins.add)
    embedding_forward = staticmethod(embedding.embedding_forward)
    embedding_backward = staticmethod(embedding.embedding_backward)
    log_softmax = staticmethod(cross_entropy.log_softmax)
    cross_entropy_forward = staticmethod(cross_entropy.cross_entropy_forward)
    cross_entropy_backward = staticmethod(cross_entropy.cross_entropy_backward)
    distillation_forward = staticmethod(cross_entropy.distillation_forward)
    distillation_backward = staticmethod(cross_entropy.distillation_backward)
    squared_norms = staticmethod(updates.squared_norms)
    adamw_updates = staticmethod(updates.adamw_updates)
    scales_update = staticmethod(updates.scales_update)
    # Of other primitives, with the engine as their first parameter.
    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward


class NumbaBF16(Numba):
    """The same, with the factors of matrix products rounded to bfloat16, see `ops.bfloat16`."""

    precision = "bf16"
    matmul = staticmethod(partial(products.matmul, precision="bf16"))
    weight_gradient = staticmethod(partial(products.weight_gradient, precision="bf16"))

    def __init__(self) -> None:
        from tinyprune.kernels.cpu.bfloat16_tiles import ABOUT, UNIT  # asks the system whether it may use AMX

        self.computed_by = ABOUT[UNIT]


class WithoutAttention(Numba):
    """For a step that compiles all kernels but those of attention."""

    attention_forward = staticmethod(ahead.zero_forward)  # type: ignore[assignment]  # another cache
    attention_backward = staticmethod(ahead.zero_backward)  # type: ignore[assignment]
