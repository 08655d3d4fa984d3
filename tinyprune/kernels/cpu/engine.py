"""The operations that Numba compiles for the processor. The others are those of `tinyprune.ops.engine`."""

from collections.abc import Iterator
from contextlib import contextmanager

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
from tinyprune.ops.engine import Engine, override

jit.watch_threads()


class Numba(Engine):
    """Kernels for the processor, on NumPy arrays of float32 or float64."""

    name = "numba"
    takes_complex = False
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

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """See `Machine`."""
        before = numba.get_num_threads()
        numba.set_num_threads(count)
        try:
            yield
        finally:
            numba.set_num_threads(before)

    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward


override(Numba, products, "matmul weight_gradient column_sums units_gradient")
override(Numba, embedding, "sum_rows embedding_forward embedding_backward")
override(Numba, joins, "concatenate add")
override(Numba, attention, "attention_forward attention_backward")
override(Numba, rotary, "rotate")
override(Numba, norms, "layernorm_forward layernorm_backward rmsnorm_forward rmsnorm_backward")
override(Numba, activations, "gelu_forward gelu_backward swiglu_forward swiglu_backward")
override(Numba, dropout, "residual_forward residual_backward")
override(Numba, cross_entropy, "log_softmax cross_entropy_forward cross_entropy_backward")
override(Numba, cross_entropy, "distillation_forward distillation_backward")
override(Numba, updates, "squared_norms adamw_updates scales_update")


class WithoutAttention(Numba):
    """For a step that compiles all kernels but those of attention."""

    attention_forward = staticmethod(ahead.zero_forward)
    attention_backward = staticmethod(ahead.zero_backward)
