"""Choose who computes: a backend is a class that has every operation of `tinyprune.ops`, under the same name.

`Backend` is the textbook. A compiled backend is a subclass that lists the operations it has kernels for; the others
stay the textbook's. From `ops.NAME(…)` in the model an editor goes to `Backend.NAME`, and from there to the function in
`ops/`; the same line of a subclass leads to `kernels/cpu/` or `kernels/cuda/`. The compiled classes are made inside
functions, since Numba is imported only when a backend that needs it is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from tinyprune import ops
from tinyprune.errors import UsageError, nearest
from tinyprune.kernels.gpu import check_usable, why_unusable
from tinyprune.progress import say

Array = Any  # np.ndarray, or for a backend on a device `kernels.cuda.array.DeviceArray`


def untyped(operation: Callable[..., Any]) -> Any:
    """Make a static method without a type: for operations with arrays or a cache unlike the textbook's."""
    return staticmethod(operation)


class Backend:
    """The textbook's operations, on NumPy arrays.

    Attributes:
        name: what `get_backend` was asked for.
        on_device: whether arrays live in a GPU's memory. Token ids stay in main memory.
        takes_complex: whether complex numbers pass through, for gradients by complex step.
        compiling: message to the user when kernels are compiled; None for a backend that compiles nothing.
        kept: message to the user after that: where they are kept.
    """

    name: str = "numpy"
    on_device: bool = False
    takes_complex: bool = True
    compiling: str | None = None
    kept: str | None = None

    def functions_to_compile(self) -> int | None:
        """Return about how many functions a run has to compile; None if some are kept already, or if nobody knows."""
        return None

    def to_device(self, x: Array) -> Array:
        """Copy an array of main memory to where the backend computes; what is there already is returned as it is."""
        return x

    def to_host(self, x: Array) -> Array:
        """Copy an array to main memory; what is there already is returned as it is."""
        return x

    def tokens(self, ids: Array, targets: Array) -> tuple[Array, Array]:
        """Return a step's ids and targets, (B, T), in main memory. A GPU gets all that it needs of them in one copy.

        Operations take other integers as well, and then copy what they need.
        """
        return ids, targets

    def reading(self, values: Sequence[Any]) -> Callable[[], list[float]]:
        """Begin to read numbers, or arrays of one number; return a function that returns them.

        On a GPU that function waits for what was launched before `reading`, not for what was launched since. It has to
        be called before the next `reading`.
        """
        found = [float(value) for value in values]
        return lambda: found

    def synchronize(self) -> None:
        """Wait until everything that was launched is computed. Without a GPU nothing is ever pending."""

    def compilations(self, begin: Callable[[str], None], end: Callable[[], None]) -> AbstractContextManager[None]:
        """In this context `begin(name)` and `end()` are called around each kernel's compilation; they may be nested."""
        return nullcontext()

    @contextmanager
    def compiling_ahead(self) -> Iterator["Backend | None"]:
        """In this context some kernels may be compiled elsewhere; yields a backend without them to compile the rest."""
        yield None

    def threads(self, count: int) -> AbstractContextManager[None]:
        """In this context kernels use `count` threads; NumPy's own are not touched."""
        return nullcontext()

    adamw_updates = staticmethod(ops.adamw_updates)
    adaptive_embedding_backward = staticmethod(ops.adaptive_embedding_backward)
    adaptive_embedding_forward = staticmethod(ops.adaptive_embedding_forward)
    adaptive_log_probabilities = staticmethod(ops.adaptive_log_probabilities)
    adaptive_softmax_backward = staticmethod(ops.adaptive_softmax_backward)
    adaptive_softmax_forward = staticmethod(ops.adaptive_softmax_forward)
    add = staticmethod(ops.add)
    attention_backward = staticmethod(ops.attention_backward)
    attention_forward = staticmethod(ops.attention_forward)
    attention_step = staticmethod(ops.attention_step)
    AttentionStep = ops.AttentionStep
    clipping = staticmethod(ops.clipping)
    context_backward = staticmethod(ops.context_backward)
    context_forward = staticmethod(ops.context_forward)
    cross_entropy_backward = staticmethod(ops.cross_entropy_backward)
    cross_entropy_forward = staticmethod(ops.cross_entropy_forward)
    distillation_backward = staticmethod(ops.distillation_backward)
    distillation_forward = staticmethod(ops.distillation_forward)
    draw_gumbel = staticmethod(ops.draw_gumbel)
    draw_noise = staticmethod(ops.draw_noise)
    dropout_backward = staticmethod(ops.dropout_backward)
    dropout_forward = staticmethod(ops.dropout_forward)
    embedding_backward = staticmethod(ops.embedding_backward)
    embedding_forward = staticmethod(ops.embedding_forward)
    feedforward_backward = staticmethod(ops.feedforward_backward)
    feedforward_forward = staticmethod(ops.feedforward_forward)
    gelu_backward = staticmethod(ops.gelu_backward)
    gelu_forward = staticmethod(ops.gelu_forward)
    hard_concrete_backward = staticmethod(ops.hard_concrete_backward)
    hard_concrete_forward = staticmethod(ops.hard_concrete_forward)
    head_difference = staticmethod(ops.head_difference)
    head_networks_backward = staticmethod(ops.head_networks_backward)
    head_networks_forward = staticmethod(ops.head_networks_forward)
    join = staticmethod(ops.join)
    l0_backward = staticmethod(ops.l0_backward)
    l0_forward = staticmethod(ops.l0_forward)
    lamb_update = staticmethod(ops.lamb_update)
    layernorm_backward = staticmethod(ops.layernorm_backward)
    layernorm_forward = staticmethod(ops.layernorm_forward)
    layerwise_error_backward = staticmethod(ops.layerwise_error_backward)
    layerwise_error_forward = staticmethod(ops.layerwise_error_forward)
    linear_backward = staticmethod(ops.linear_backward)
    linear_forward = staticmethod(ops.linear_forward)
    log_softmax = staticmethod(ops.log_softmax)
    p_open = staticmethod(ops.p_open)
    positions_backward = staticmethod(ops.positions_backward)
    positions_forward = staticmethod(ops.positions_forward)
    projections_backward = staticmethod(ops.projections_backward)
    projections_forward = staticmethod(ops.projections_forward)
    put_slices = staticmethod(ops.put_slices)
    repeat_heads_backward = staticmethod(ops.repeat_heads_backward)
    repeat_heads_forward = staticmethod(ops.repeat_heads_forward)
    residual_backward = staticmethod(ops.residual_backward)
    residual_forward = staticmethod(ops.residual_forward)
    rmsnorm_backward = staticmethod(ops.rmsnorm_backward)
    rmsnorm_forward = staticmethod(ops.rmsnorm_forward)
    rotary_backward = staticmethod(ops.rotary_backward)
    rotary_forward = staticmethod(ops.rotary_forward)
    sigmoid = staticmethod(ops.sigmoid)
    squared_norm = staticmethod(ops.squared_norm)
    squared_norms = staticmethod(ops.squared_norms)
    swiglu_backward = staticmethod(ops.swiglu_backward)
    swiglu_forward = staticmethod(ops.swiglu_forward)
    take_slices = staticmethod(ops.take_slices)
    top_k_backward = staticmethod(ops.top_k_backward)
    top_k_forward = staticmethod(ops.top_k_forward)


def why_no_numba() -> str | None:
    """Return one line that says how to get Numba; None if it is installed. Nothing is imported."""
    if find_spec("numba") is not None:
        return None
    return "Numba is not installed: python -m pip install numba, or use --backend numpy"


def numba_backend() -> Backend:
    """Kernels that Numba compiles for the CPU.

    Raises:
        UsageError: if Numba is not installed or cannot be imported, for example beside a NumPy that it does not know.
    """
    try:
        import numba
    except ImportError as error:
        reason = why_no_numba() or f"{error}; update Numba, or use --backend numpy"
        raise UsageError(f"the numba backend cannot run: {reason}") from error

    from tinyprune.kernels.cpu import (
        adamw,
        adaptive_embedding,
        adaptive_softmax,
        ahead,
        attention,
        context,
        cross_entropy,
        dropout,
        embedding,
        feedforward,
        gelu,
        head_networks,
        jit,
        lamb,
        layernorm,
        layerwise_error,
        linear,
        norm,
        projections,
        repeat_heads,
        residual,
        rmsnorm,
        rotary,
        slices,
        swiglu,
    )
    from tinyprune.kernels.cpu import add as adding
    from tinyprune.kernels.cpu import attention_step as stepping

    jit.watch_threads()

    class Numba(Backend):
        name = "numba"
        takes_complex = False
        compiling = jit.COMPILING
        kept = jit.KEPT

        def functions_to_compile(self) -> int | None:
            return jit.functions_of_a_run()

        def compilations(self, begin: Callable[[str], None], end: Callable[[], None]) -> AbstractContextManager[None]:
            return jit.compilations(begin, end)

        @contextmanager
        def compiling_ahead(self) -> Iterator[Backend | None]:
            if not ahead.worthwhile():
                yield None
                return
            with ahead.second_process():
                yield Beside()

        @contextmanager
        def threads(self, count: int) -> Iterator[None]:
            before = numba.get_num_threads()
            numba.set_num_threads(count)
            try:
                yield
            finally:
                numba.set_num_threads(before)

        adamw_updates = staticmethod(adamw.adamw_updates)
        adaptive_embedding_backward = staticmethod(adaptive_embedding.adaptive_embedding_backward)
        adaptive_embedding_forward = untyped(adaptive_embedding.adaptive_embedding_forward)
        adaptive_log_probabilities = untyped(adaptive_softmax.adaptive_log_probabilities)
        adaptive_softmax_backward = staticmethod(adaptive_softmax.adaptive_softmax_backward)
        adaptive_softmax_forward = untyped(adaptive_softmax.adaptive_softmax_forward)
        add = staticmethod(adding.add)
        attention_backward = untyped(attention.attention_backward)
        attention_forward = untyped(attention.attention_forward)
        attention_step = staticmethod(stepping.attention_step)
        AttentionStep = stepping.AttentionStep  # type: ignore[assignment]
        clipping = staticmethod(norm.clipping)
        context_forward = staticmethod(context.context_forward)
        cross_entropy_backward = staticmethod(cross_entropy.cross_entropy_backward)
        cross_entropy_forward = staticmethod(cross_entropy.cross_entropy_forward)
        dropout_backward = staticmethod(dropout.dropout_backward)
        dropout_forward = staticmethod(dropout.dropout_forward)
        embedding_backward = staticmethod(embedding.embedding_backward)
        embedding_forward = staticmethod(embedding.embedding_forward)
        feedforward_backward = staticmethod(feedforward.feedforward_backward)
        feedforward_forward = staticmethod(feedforward.feedforward_forward)
        gelu_backward = staticmethod(gelu.gelu_backward)
        gelu_forward = staticmethod(gelu.gelu_forward)
        head_networks_backward = staticmethod(head_networks.head_networks_backward)
        head_networks_forward = staticmethod(head_networks.head_networks_forward)
        lamb_update = staticmethod(lamb.lamb_update)
        layernorm_backward = staticmethod(layernorm.layernorm_backward)
        layernorm_forward = staticmethod(layernorm.layernorm_forward)
        layerwise_error_backward = staticmethod(layerwise_error.layerwise_error_backward)
        layerwise_error_forward = staticmethod(layerwise_error.layerwise_error_forward)
        linear_backward = staticmethod(linear.linear_backward)
        linear_forward = staticmethod(linear.linear_forward)
        log_softmax = staticmethod(cross_entropy.log_softmax)
        projections_backward = staticmethod(projections.projections_backward)
        projections_forward = staticmethod(projections.projections_forward)
        put_slices = staticmethod(slices.put_slices)
        repeat_heads_backward = staticmethod(repeat_heads.repeat_heads_backward)
        repeat_heads_forward = staticmethod(repeat_heads.repeat_heads_forward)
        residual_backward = staticmethod(residual.residual_backward)
        residual_forward = staticmethod(residual.residual_forward)
        rmsnorm_backward = staticmethod(rmsnorm.rmsnorm_backward)
        rmsnorm_forward = staticmethod(rmsnorm.rmsnorm_forward)
        rotary_backward = staticmethod(rotary.rotary_backward)
        rotary_forward = staticmethod(rotary.rotary_forward)
        squared_norm = staticmethod(norm.squared_norm)
        squared_norms = staticmethod(norm.squared_norms)
        swiglu_backward = staticmethod(swiglu.swiglu_backward)
        swiglu_forward = staticmethod(swiglu.swiglu_forward)
        take_slices = staticmethod(slices.take_slices)

    class Beside(Numba):
        """For a step that compiles all kernels but those of attention."""

        attention_forward = untyped(ahead.stand_in_forward)
        attention_backward = untyped(ahead.stand_in_backward)

    return Numba()


def cuda_backend(precision: str = "float32") -> Backend:
    """Kernels that `numba.cuda` compiles for an NVIDIA GPU.

    Args:
        precision: "tf32" lets tensor cores compute the products of linear layers, see `cuda.products.tensor_cores`.

    Raises:
        UsageError: if kernels cannot run here, neither on a GPU nor in Numba's simulator.
    """
    check_usable()
    from tinyprune.kernels.cuda.device import array, jit
    from tinyprune.kernels.cuda.device.driver import driver
    from tinyprune.kernels.cuda.layers import (
        activations,
        attention,
        context,
        dropout,
        feedforward,
        head_networks,
        linear,
        norms,
        positions,
        projections,
        repeat_heads,
        residual,
        rotary,
    )
    from tinyprune.kernels.cuda.layers import add as adding
    from tinyprune.kernels.cuda.layers import attention_step as stepping
    from tinyprune.kernels.cuda.pruning import hard_concrete, l0, layerwise_error, slices, top_k
    from tinyprune.kernels.cuda.pruning import head_difference as differing
    from tinyprune.kernels.cuda.pruning import join as joining
    from tinyprune.kernels.cuda.updates import adamw, lamb, norm
    from tinyprune.kernels.cuda.vocabulary import (
        adaptive_embedding,
        adaptive_softmax,
        cross_entropy,
        distillation,
        embedding,
    )

    class Cuda(Backend):
        name = "cuda"
        on_device = True
        takes_complex = False
        compiling = jit.COMPILING
        kept = jit.KEPT

        def to_device(self, x: Array) -> Array:
            return array.to_device(x)

        def to_host(self, x: Array) -> Array:
            return array.to_host(x)

        def tokens(self, ids: Array, targets: Array) -> tuple[Array, Array]:
            return embedding.tokens(ids, targets)

        def reading(self, values: Sequence[Any]) -> Callable[[], list[float]]:
            return array.reading(values)

        def synchronize(self) -> None:
            if not jit.SIMULATED:
                driver().synchronize()

        def compilations(self, begin: Callable[[str], None], end: Callable[[], None]) -> AbstractContextManager[None]:
            return jit.compilations(begin, end)

        adamw_updates = untyped(adamw.adamw_updates)
        adaptive_embedding_backward = untyped(adaptive_embedding.adaptive_embedding_backward)
        adaptive_embedding_forward = untyped(adaptive_embedding.adaptive_embedding_forward)
        adaptive_log_probabilities = untyped(adaptive_softmax.adaptive_log_probabilities)
        adaptive_softmax_backward = untyped(adaptive_softmax.adaptive_softmax_backward)
        adaptive_softmax_forward = untyped(adaptive_softmax.adaptive_softmax_forward)
        add = untyped(adding.add)
        attention_backward = untyped(attention.attention_backward)
        attention_forward = untyped(attention.attention_forward)
        attention_step = untyped(stepping.attention_step)
        AttentionStep = stepping.AttentionStep
        clipping = untyped(norm.clipping)
        context_backward = untyped(context.context_backward)
        context_forward = untyped(context.context_forward)
        cross_entropy_backward = untyped(cross_entropy.cross_entropy_backward)
        cross_entropy_forward = untyped(cross_entropy.cross_entropy_forward)
        distillation_backward = untyped(distillation.distillation_backward)
        distillation_forward = untyped(distillation.distillation_forward)
        dropout_backward = untyped(dropout.dropout_backward)
        dropout_forward = untyped(dropout.dropout_forward)
        embedding_backward = untyped(embedding.embedding_backward)
        embedding_forward = untyped(embedding.embedding_forward)
        feedforward_backward = untyped(feedforward.feedforward_backward)
        feedforward_forward = untyped(feedforward.feedforward_forward)
        gelu_backward = untyped(activations.gelu_backward)
        gelu_forward = untyped(activations.gelu_forward)
        hard_concrete_backward = untyped(hard_concrete.hard_concrete_backward)
        hard_concrete_forward = untyped(hard_concrete.hard_concrete_forward)
        head_difference = untyped(differing.head_difference)
        head_networks_backward = untyped(head_networks.head_networks_backward)
        head_networks_forward = untyped(head_networks.head_networks_forward)
        join = untyped(joining.join)
        l0_backward = untyped(l0.l0_backward)
        l0_forward = untyped(l0.l0_forward)
        lamb_update = untyped(lamb.lamb_update)
        layernorm_backward = untyped(norms.layernorm_backward)
        layernorm_forward = untyped(norms.layernorm_forward)
        layerwise_error_backward = untyped(layerwise_error.layerwise_error_backward)
        layerwise_error_forward = untyped(layerwise_error.layerwise_error_forward)
        linear_backward = untyped(linear.linear_backward)
        linear_forward = untyped(linear.linear_forward)
        log_softmax = untyped(cross_entropy.log_softmax)
        positions_backward = untyped(positions.positions_backward)
        positions_forward = untyped(positions.positions_forward)
        projections_backward = untyped(projections.projections_backward)
        projections_forward = untyped(projections.projections_forward)
        put_slices = untyped(slices.put_slices)
        repeat_heads_backward = untyped(repeat_heads.repeat_heads_backward)
        repeat_heads_forward = untyped(repeat_heads.repeat_heads_forward)
        residual_backward = untyped(residual.residual_backward)
        residual_forward = untyped(residual.residual_forward)
        rmsnorm_backward = untyped(norms.rmsnorm_backward)
        rmsnorm_forward = untyped(norms.rmsnorm_forward)
        rotary_backward = untyped(rotary.rotary_backward)
        rotary_forward = untyped(rotary.rotary_forward)
        squared_norm = untyped(norm.squared_norm)
        squared_norms = untyped(norm.squared_norms)
        swiglu_backward = untyped(activations.swiglu_backward)
        swiglu_forward = untyped(activations.swiglu_forward)
        take_slices = untyped(slices.take_slices)
        top_k_backward = untyped(top_k.top_k_backward)
        top_k_forward = untyped(top_k.top_k_forward)

    if precision == "float32":
        return Cuda()

    class CudaTF32(Cuda):
        """Only forward operations need to be told: a backward finds the precision in its cache."""

        name = "cuda-tf32"
        linear_forward = untyped(partial(linear.linear_forward, precision=precision))
        projections_forward = untyped(partial(projections.projections_forward, precision=precision))
        feedforward_forward = untyped(partial(feedforward.feedforward_forward, precision=precision))
        head_networks_forward = untyped(partial(head_networks.head_networks_forward, precision=precision))
        adaptive_embedding_forward = untyped(
            partial(adaptive_embedding.adaptive_embedding_forward, precision=precision)
        )
        adaptive_softmax_forward = untyped(partial(adaptive_softmax.adaptive_softmax_forward, precision=precision))
        adaptive_log_probabilities = untyped(partial(adaptive_softmax.adaptive_log_probabilities, precision=precision))

    return CudaTF32()


class Choice(NamedTuple):
    """What is known of a backend before it is made.

    Attributes:
        make: makes it; what it needs is imported only then.
        on_device: see `Backend`.
        precision: of matrix products: "float32", or "tf32" by tensor cores.
        packages: that compute, beside NumPy; for reports of a machine.
        about: what it is, in one line.
        problem: returns why it cannot run here and what to install, in one line; None if it can.
    """

    make: Callable[[], Backend]
    about: str
    problem: Callable[[], str | None] = lambda: None
    on_device: bool = False
    precision: str = "float32"
    packages: tuple[str, ...] = ()


BACKENDS = {
    "numba": Choice(numba_backend, "compiled for the processor by Numba", why_no_numba, packages=("numba",)),
    "numpy": Choice(Backend, "the textbook, in NumPy"),
    "cuda": Choice(cuda_backend, "compiled for an NVIDIA GPU", why_unusable, on_device=True, packages=("numba-cuda",)),
    "cuda-tf32": Choice(
        partial(cuda_backend, "tf32"),
        "the same, with products on tensor cores from numbers rounded to 11 bits",
        why_unusable,
        on_device=True,
        precision="tf32",
        packages=("numba-cuda",),
    ),
}


def default_backend() -> str:
    """Return the name of the backend that computes where none is asked for: numba, or numpy where Numba is missing."""
    if why_no_numba() is None:
        return "numba"
    say("Numba is not installed: NumPy computes in its place, many times slower")
    return "numpy"


def get_backend(name: str) -> Backend:
    """Return the backend of this name.

    Raises:
        UsageError: if there is none, or what it needs is not here.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{nearest(name, BACKENDS)}")
    return BACKENDS[name].make()
