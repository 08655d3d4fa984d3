"""The operations that `numba.cuda` compiles for an NVIDIA GPU. The compositions are those of `tinyprune.ops.engine`."""

from functools import partial

from tinyprune.kernels import linear
from tinyprune.kernels.cuda.device import array, jit
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.memory import POOL
from tinyprune.kernels.cuda.operations import (
    attention,
    attention_step,
    cross_entropy,
    embedding,
    gathers,
    maps,
    norms,
    updates,
)
from tinyprune.kernels.cuda.products import primitives
from tinyprune.ops.engine import Engine


class Cuda(Engine):
    """Kernels for a GPU, on `DeviceArray`s of float32."""

    name = "cuda"
    on_device = True
    takes_complex = False
    compiling = jit.COMPILING
    kept = jit.KEPT

    to_device = staticmethod(array.to_device)
    to_host = staticmethod(array.to_host)
    reading = staticmethod(array.reading)
    compilations = staticmethod(jit.compilations)

    def synchronize(self) -> None:
        """See `Machine`."""
        if not jit.SIMULATED:
            driver().synchronize()

    def memory_peak(self, restart: bool = False) -> int:
        """See `Machine`."""
        if restart:
            POOL.most_used = POOL.bytes_used
        return POOL.most_used

    matmul = staticmethod(primitives.matmul)
    weight_gradient = staticmethod(primitives.weight_gradient)
    column_sums = staticmethod(primitives.column_sums)
    linear_forward = linear.linear_forward
    linear_backward = linear.linear_backward
    take_rows = staticmethod(embedding.take_rows)
    add_rows = staticmethod(embedding.add_rows)
    sum_rows = staticmethod(embedding.sum_rows)
    multiply_rows = staticmethod(gathers.multiply_rows)
    row_dots = staticmethod(gathers.row_dots)
    concatenate = staticmethod(gathers.concatenate)
    take_slices = staticmethod(gathers.take_slices)
    put_slices = staticmethod(gathers.put_slices)
    sum_heads = staticmethod(gathers.sum_heads)
    attention_forward = staticmethod(attention.attention_forward)
    attention_backward = staticmethod(attention.attention_backward)
    AttentionStep = attention_step.AttentionStep
    attention_step = staticmethod(attention_step.attention_step)
    rotate = staticmethod(maps.rotate)
    layernorm_forward = staticmethod(norms.layernorm_forward)
    layernorm_backward = staticmethod(norms.layernorm_backward)
    rmsnorm_forward = staticmethod(norms.rmsnorm_forward)
    rmsnorm_backward = staticmethod(norms.rmsnorm_backward)
    gelu_forward = staticmethod(maps.gelu_forward)
    gelu_backward = staticmethod(maps.gelu_backward)
    swiglu_forward = staticmethod(maps.swiglu_forward)
    swiglu_backward = staticmethod(maps.swiglu_backward)
    units_gradient = staticmethod(gathers.units_gradient)
    residual_forward = staticmethod(maps.residual_forward)
    residual_backward = staticmethod(maps.residual_backward)
    add = staticmethod(maps.add)
    embedding_forward = staticmethod(embedding.embedding_forward)
    embedding_backward = staticmethod(embedding.embedding_backward)
    log_softmax = staticmethod(cross_entropy.log_softmax)
    cross_entropy_forward = staticmethod(cross_entropy.cross_entropy_forward)
    cross_entropy_backward = staticmethod(cross_entropy.cross_entropy_backward)
    distillation_forward = staticmethod(cross_entropy.distillation_forward)
    distillation_backward = staticmethod(cross_entropy.distillation_backward)
    squared_norms = staticmethod(updates.squared_norms)
    clipping = staticmethod(updates.clipping)
    adamw_updates = staticmethod(updates.adamw_updates)
    lamb_update = staticmethod(updates.lamb_update)


class CudaTF32(Cuda):
    """The same, with products on tensor cores."""

    name = "cuda-tf32"
    matmul = staticmethod(partial(primitives.matmul, precision="tf32"))
    weight_gradient = staticmethod(partial(primitives.weight_gradient, precision="tf32"))


ENGINES = {"float32": Cuda, "tf32": CudaTF32}
