"""The list of operations for an NVIDIA GPU: kernels of `numba.cuda` override the primitives of `ops.engine`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tinyprune.kernels import linear
from tinyprune.kernels.cuda import (
    activations,
    attention,
    cross_entropy,
    dropout,
    embedding,
    gathers,
    joins,
    norms,
    rotary,
    updates,
)
from tinyprune.kernels.cuda.arguments import check_in_place
from tinyprune.kernels.cuda.compiled import compilations
from tinyprune.kernels.cuda.device import array, jit
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.products import primitives
from tinyprune.ops.engine import Array, Engine


class Cuda(Engine):
    """Kernels for a GPU, on `DeviceArray`s of float32. Primitives without a kernel are added below the class."""

    name = "cuda"
    on_device = True
    takes_complex = False
    compiling = jit.COMPILING
    compiled = jit.COMPILED

    to_device = staticmethod(array.to_device)
    to_host = staticmethod(array.to_host)
    reading = staticmethod(array.reading)
    compilations = staticmethod(compilations)

    def synchronize(self) -> None:
        """See `Machine`."""
        driver().synchronize()

    # Primitives, in the order of `ops.engine`.
    matmul = staticmethod(primitives.matmul)
    weight_gradient = staticmethod(primitives.weight_gradient)
    column_sums = staticmethod(primitives.column_sums)
    take_rows = staticmethod(embedding.take_rows)
    add_rows = staticmethod(embedding.add_rows)
    set_rows = staticmethod(gathers.set_rows)
    sum_rows = staticmethod(embedding.sum_rows)
    multiply_rows = staticmethod(gathers.multiply_rows)
    row_dots = staticmethod(gathers.row_dots)
    concatenate = staticmethod(joins.concatenate)
    take_slices = staticmethod(gathers.take_slices)
    put_slices = staticmethod(gathers.put_slices)
    sum_heads = staticmethod(gathers.sum_heads)
    attention_forward = staticmethod(attention.attention_forward)
    attention_backward = staticmethod(attention.attention_backward)
    rotate = staticmethod(rotary.rotate)
    layernorm_forward = staticmethod(norms.layernorm_forward)
    layernorm_backward = staticmethod(norms.layernorm_backward)
    rmsnorm_forward = staticmethod(norms.rmsnorm_forward)
    rmsnorm_backward = staticmethod(norms.rmsnorm_backward)
    gelu_forward = staticmethod(activations.gelu_forward)
    gelu_backward = staticmethod(activations.gelu_backward)
    swiglu_forward = staticmethod(activations.swiglu_forward)
    swiglu_backward = staticmethod(activations.swiglu_backward)
    units_gradient = staticmethod(gathers.units_gradient)
    residual_forward = staticmethod(dropout.residual_forward)
    residual_backward = staticmethod(dropout.residual_backward)
    add = staticmethod(joins.add)
    embedding_forward = staticmethod(embedding.embedding_forward)
    embedding_backward = staticmethod(embedding.embedding_backward)
    log_softmax = staticmethod(cross_entropy.log_softmax)
    cross_entropy_forward = staticmethod(cross_entropy.cross_entropy_forward)
    cross_entropy_backward = staticmethod(cross_entropy.cross_entropy_backward)
    squared_norms = staticmethod(updates.squared_norms)
    adamw_updates = staticmethod(updates.adamw_updates)
    lamb_update = staticmethod(updates.lamb_update)
    # Several at once, and what needs no copy to main memory.
    matmuls = staticmethod(primitives.matmuls)
    weight_gradients = staticmethod(primitives.weight_gradients)
    clipping = staticmethod(updates.clipping)
    # Of other primitives, with the engine as their first parameter.
    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward


def moved(move: Callable[[Array], Array], value: Any) -> Any:
    """Return `move(value)`, or a list or tuple with every array in it moved; anything else is returned as it is."""
    if isinstance(value, list | tuple):
        entries = [moved(move, x) for x in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    value = np.asarray(value) if isinstance(value, np.generic) else value
    return move(value) if hasattr(value, "shape") else value


def in_main_memory(name: str) -> Callable[..., Any]:
    """Return a method that copies its arguments to main memory, calls NumPy's primitive, and copies the result back.

    An update returns nothing; then the arrays that it changed are copied back. So is distillation computed: where a
    teacher has room beside its student, logits are few.
    """

    def run(self: Engine, *arguments: Any, **options: Any) -> Any:
        given = arguments[:-1] if name.endswith("_backward") else arguments  # its cache has never left main memory
        copies = moved(self.to_host, given)
        by_name = {key: moved(self.to_host, value) for key, value in options.items()}
        result = getattr(Engine, name)(*copies, *arguments[len(given) :], **by_name)
        if result is None:
            pairs: Any = zip([*given, *options.values()], [*copies, *by_name.values()], strict=True)
            pairs = [(x, copy) for x, copy in pairs if isinstance(x, array.DeviceArray) and x.size]
            written = [(x, copy) for x, copy in pairs if not np.array_equal(copy, self.to_host(x), equal_nan=True)]
            for x, _ in written:
                check_in_place(array=x)
            for x, copy in written:
                driver().write(x.pointer, copy.reshape(-1))
        if name.endswith("_forward"):
            return moved(self.to_device, result[0]), result[1]
        return moved(self.to_device, result)

    return run


ON_VIEWS = ("context_backward",)  # NumPy's code runs on DeviceArrays: views
for _name, _primitive in vars(Engine).items():
    if isinstance(_primitive, staticmethod) and _name not in (*vars(Cuda), *ON_VIEWS):
        setattr(Cuda, _name, in_main_memory(_name))


class CudaTF32(Cuda):
    """The same, with matrix products on tensor cores, in tf32."""

    name = "cuda-tf32"
    matmul = staticmethod(partial(primitives.matmul, precision="tf32"))
    weight_gradient = staticmethod(partial(primitives.weight_gradient, precision="tf32"))
    matmuls = staticmethod(partial(primitives.matmuls, precision="tf32"))
    weight_gradients = staticmethod(partial(primitives.weight_gradients, precision="tf32"))
