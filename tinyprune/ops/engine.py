"""The one list of operations. Begin to read here.

An operation is a pair `out, cache = x_forward(…)` and `dx, … = x_backward(dout, cache)`, or a function without a
gradient. Its formula, its shapes and its source stand in the module that defines it. There are two kinds:

    a primitive      is one formula in NumPy, and a static method here; a compiled engine overrides it with a kernel
    a composition    is made of other operations: a plain function whose first parameter `ops` is the engine, so that it
                     becomes a method here (a static one if it calls no others); it is written once, for all engines

So `ops.projections_forward(n, Wq, …)` runs the same lines on every engine, and `ops.matmul` in them is NumPy's here,
Numba's in `kernels/cpu/engine.py`, and CUDA's in `kernels/cuda/engine.py`: subclasses, which list what they override.

The gates (hard-concrete, L0) are a few hundred numbers at most. They are NumPy's with every engine, in main memory,
and not in this list: see `ops.hard_concrete` and `ops.l0`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tinyprune.ops import (
    adamw,
    adaptive_embedding,
    adaptive_softmax,
    add,
    attention,
    blocks,
    clipping,
    context,
    cross_entropy,
    distillation,
    embedding,
    feedforward,
    gelu,
    head_networks,
    lamb,
    layernorm,
    linear,
    norm,
    positions,
    products,
    projections,
    repeat_heads,
    residual,
    rmsnorm,
    rotary,
    rows,
    scales,
    slices,
    swiglu,
)

Array = Any  # np.ndarray, or `kernels.cuda.device.array.DeviceArray` for an engine on a GPU


class Machine:
    """What an engine does beside operations: copies between memories, compilation, threads. NumPy has to do none of it.

    Attributes:
        name: as in `get_backend(name)`.
        precision: of the factors of matrix products, "float32" for those of the arrays.
        precisions: all that `in_precision` takes.
        on_device: whether arrays live in a GPU's memory. Token ids and gates stay in main memory.
        takes_complex: whether operations accept complex numbers, for gradients by complex step.
        computed_by: what computes products in another precision, such as "by the processor's AMX".
        compiling: message to the user when kernels are compiled; None for an engine that compiles nothing.
        compiled: message to the user after that, which names the folder where they are cached.
    """

    name: str = "numpy"
    precision: str = "float32"
    precisions: tuple[str, ...] = ("float32",)
    computed_by: str = ""
    on_device: bool = False
    takes_complex: bool = True
    compiling: str | None = None
    compiled: str | None = None

    def functions_to_compile(self) -> int | None:
        """Return about how many functions a run has to compile; None if some are cached already, or if unknown."""
        return None

    def to_device(self, x: Array) -> Array:
        """Copy an array of main memory to where the engine computes; arrays already there are returned unchanged."""
        return x

    def to_host(self, x: Array) -> Array:
        """Copy an array to main memory; arrays already there are returned unchanged."""
        return x

    def reading(self, values: Sequence[Any]) -> Callable[[], list[float]]:
        """Begin to copy numbers, or arrays of one number, to main memory; return a function that returns them.

        On a GPU that function waits for kernels launched before `reading`, not for those launched since. It has to be
        called before the next `reading`.
        """
        numbers = [float(value) for value in values]
        return lambda: numbers

    def synchronize(self) -> None:
        """Wait until every kernel that was launched has ended. Without a GPU nothing is ever pending."""

    def compilations(self, begin: Callable[[str], None], end: Callable[[], None]) -> AbstractContextManager[None]:
        """In this context `begin(name)` and `end()` are called around each kernel's compilation; they may be nested."""
        return nullcontext()

    @contextmanager
    def compiling_ahead(self) -> Iterator["Engine | None"]:
        """In this context a second process may compile some kernels; yields an engine without these, or None."""
        yield None

    def in_precision(self, precision: str) -> "Engine":
        """Return the same engine with the factors of products in one of its `precisions`."""
        return self  # type: ignore[return-value]  # Engine is the only subclass

    def decoder(self, config: Any, layers: Any, r: Any, params: Any, places: int, matrices: Any) -> Any:
        """Return what takes a token through a model in one call; None where operations do it one by one.

        For the arguments see `kernels.cpu.decoder.Decoder`.
        """
        return None

    def threads(self, count: int) -> AbstractContextManager[None]:
        """In this context kernels use `count` threads; the threads of NumPy's BLAS are not touched."""
        return nullcontext()


class Engine(Machine):
    """All operations of the model, computed by NumPy."""

    # Primitives: products, rows of matrices, and slices of them (those of the heads that are computed).
    matmul = staticmethod(products.matmul)
    weight_gradient = staticmethod(products.weight_gradient)
    column_sums = staticmethod(products.column_sums)
    linear_forward = staticmethod(linear.linear_forward)
    linear_backward = staticmethod(linear.linear_backward)
    take_rows = staticmethod(rows.take_rows)
    add_rows = staticmethod(rows.add_rows)
    set_rows = staticmethod(rows.set_rows)
    sum_rows = staticmethod(rows.sum_rows)
    multiply_rows = staticmethod(rows.multiply_rows)
    row_dots = staticmethod(rows.row_dots)
    concatenate = staticmethod(rows.concatenate)
    take_slices = staticmethod(slices.take_slices)
    put_slices = staticmethod(slices.put_slices)
    sum_heads = staticmethod(repeat_heads.sum_heads)
    # Attention.
    attention_forward = staticmethod(attention.attention_forward)
    attention_backward = staticmethod(attention.attention_backward)
    rotate = staticmethod(rotary.rotate)
    # Norms, activations, residual connections.
    layernorm_forward = staticmethod(layernorm.layernorm_forward)
    layernorm_backward = staticmethod(layernorm.layernorm_backward)
    rmsnorm_forward = staticmethod(rmsnorm.rmsnorm_forward)
    rmsnorm_backward = staticmethod(rmsnorm.rmsnorm_backward)
    gelu_forward = staticmethod(gelu.gelu_forward)
    gelu_backward = staticmethod(gelu.gelu_backward)
    swiglu_forward = staticmethod(swiglu.swiglu_forward)
    swiglu_backward = staticmethod(swiglu.swiglu_backward)
    units_gradient = staticmethod(head_networks.units_gradient)
    residual_forward = staticmethod(residual.residual_forward)
    residual_backward = staticmethod(residual.residual_backward)
    add = staticmethod(add.add)
    # The vocabulary at both ends.
    embedding_forward = staticmethod(embedding.embedding_forward)
    embedding_backward = staticmethod(embedding.embedding_backward)
    log_softmax = staticmethod(cross_entropy.log_softmax)
    cross_entropy_forward = staticmethod(cross_entropy.cross_entropy_forward)
    cross_entropy_backward = staticmethod(cross_entropy.cross_entropy_backward)
    distillation_forward = staticmethod(distillation.distillation_forward)
    distillation_backward = staticmethod(distillation.distillation_backward)
    # Updates of parameters.
    squared_norms = staticmethod(norm.squared_norms)
    adamw_updates = staticmethod(adamw.adamw_updates)
    lamb_update = staticmethod(lamb.lamb_update)
    scales_update = staticmethod(scales.scales_update)

    # Compositions: several products at once, which the engine of a GPU overrides, since it launches them together.
    matmuls = products.matmuls
    weight_gradients = products.weight_gradients
    # An attention block, in the order of its mathematics.
    context_forward = context.context_forward
    context_backward = staticmethod(context.context_backward)
    projections_forward = projections.projections_forward
    projections_backward = projections.projections_backward
    rotary_forward = rotary.rotary_forward
    rotary_backward = rotary.rotary_backward
    repeat_heads_forward = repeat_heads.repeat_heads_forward
    repeat_heads_backward = repeat_heads.repeat_heads_backward
    # The second block of a layer.
    blocks_forward = blocks.blocks_forward
    blocks_backward = blocks.blocks_backward
    feedforward_forward = feedforward.feedforward_forward
    feedforward_backward = feedforward.feedforward_backward
    head_networks_forward = head_networks.head_networks_forward
    head_networks_backward = head_networks.head_networks_backward
    # The model's first and last step.
    positions_forward = positions.positions_forward
    positions_backward = positions.positions_backward
    adaptive_embedding_forward = adaptive_embedding.adaptive_embedding_forward
    adaptive_embedding_backward = adaptive_embedding.adaptive_embedding_backward
    adaptive_softmax_forward = adaptive_softmax.adaptive_softmax_forward
    adaptive_softmax_backward = adaptive_softmax.adaptive_softmax_backward
    adaptive_log_probabilities = adaptive_softmax.adaptive_log_probabilities
    # Before an update; the engine of a GPU overrides it, so that nothing waits.
    clipping = clipping.clipping


OPERATIONS = tuple(name for name in vars(Engine) if not name.startswith("__"))
