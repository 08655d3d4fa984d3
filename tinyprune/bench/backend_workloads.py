"""Our side of every benchmark but the ladder: operations of a backend, and the model that is made of them.

`copy` and `multiply_adds`, the limits of a GPU, need the cuda backend; everything else runs with every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import IN_A_ROW, Gauge, Workload, shapes
from tinyprune.bench.shapes import TRAIN, ModelShape, attention_arguments, matrices, model_shape, parameters
from tinyprune.config import GateConfig
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.model.generation import CachedDecoder
from tinyprune.model.transformer import Transformer
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.engine import Engine
from tinyprune.pruning.gates import GateObjective, add_gates
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.step import LanguageModelling, Training, train_step

OPEN, CLOSED = 5.0, -20.0  # log_alpha of gates that stay as they are during a measurement


def gauge(ops: Engine) -> Gauge | None:
    """A gauge of the GPU memory that arrays occupy; None if they are in main memory."""
    if not ops.on_device:
        return None
    from tinyprune.kernels.cuda.device.memory import POOL

    def begin() -> int:
        POOL.most_used = POOL.bytes_used
        return POOL.bytes_used

    return Gauge(begin, lambda: POOL.most_used)


def in_a_row(ops: Engine, run: Callable[[], Any], results: Callable[[], dict[str, NDArray]] = dict) -> Workload:
    """A short workload; on a GPU several runs in a row, then one wait. (In Numba's simulator one is long enough.)"""
    if not ops.on_device:
        return Workload(run, results)
    from tinyprune.kernels.cuda.device.jit import SIMULATED

    count = 1 if SIMULATED else IN_A_ROW

    def run_all() -> None:
        for _ in range(count):
            run()
        ops.synchronize()

    return Workload(run_all, results, units=count)


def matmul(backend: str, m: int, k: int, n: int, layout: str) -> Workload:
    """One product; see `shapes.matrices`. With the backend numpy it is that of NumPy's BLAS."""
    ops, choice = get_backend(backend), BACKENDS[backend]
    a, b = matrices(m, k, n, layout)
    if ops.on_device:
        from tinyprune.kernels.cuda.products import primitives

        x, y = ops.to_device(a), ops.to_device(b)

        def on_gpu() -> Any:
            if layout == "Aᵀ·B":
                return primitives.weight_gradient(x, y, precision=choice.precision)
            return primitives.matmul(x, y.T if layout == "A·Bᵀ" else y, precision=choice.precision)

        return in_a_row(ops, on_gpu, lambda: {"out": ops.to_host(on_gpu())})
    out = np.empty((m, n), np.float32)
    if not choice.packages:  # NumPy computes
        a, b = (a.T if layout == "Aᵀ·B" else a), (b.T if layout == "A·Bᵀ" else b)
        return Workload(lambda: np.matmul(a, b, out=out), lambda: {"out": np.matmul(a, b)})
    from tinyprune.kernels.cpu.matmul import matmul as compiled

    options = {"transpose_a": layout == "Aᵀ·B", "transpose_b": layout == "A·Bᵀ"}
    return Workload(lambda: compiled(a, b, out=out, **options), lambda: {"out": compiled(a, b, **options)})


def attention(backend: str, **shape: Any) -> Workload:
    """Forward + backward to all inputs; see `shapes.model_shape` for `shape`."""
    measured, ops = model_shape(**shape), get_backend(backend)
    inputs, dout = attention_arguments(measured)
    arrays, dout = {name: ops.to_device(x) for name, x in inputs.items()}, ops.to_device(dout)
    generator = np.random.default_rng(0)
    options = {"span": measured.config.span, "dropout": measured.config.dropout_attention}

    def run(rng: np.random.Generator | None = generator) -> tuple[NDArray, tuple]:
        out, cache = ops.attention_forward(**arrays, **options, rng=rng)
        grads = ops.attention_backward(dout, cache)
        ops.synchronize()
        return out, grads

    def results() -> dict[str, NDArray]:
        out, grads = run(rng=None)
        names = ("q", "k", "v", "r", "u", "w", "pk", "pv")
        named = {f"d{name}": grad for name, grad in zip(names, grads, strict=False) if grad is not None}
        return {name: ops.to_host(x) for name, x in ({"out": out} | named).items()}

    return Workload(run, results, gauge=gauge(ops))


def make_model(shape: ModelShape, ops: Engine, half: str | None) -> Transformer:
    """The model with all heads and no gates; with `half` every second head is "closed" by a gate, or "removed"."""
    params = parameters(shape)
    if half is None:
        return Transformer(shape.config, params, ops=ops)
    gate = GateConfig(lr_multiplier=1.0)
    params = add_gates(params, shape.config.heads, gate)
    for i in range(shape.config.L):
        params[f"layers.{i}.log_alpha"][:] = OPEN
        params[f"layers.{i}.log_alpha"][1::2] = CLOSED
    model = Transformer(shape.config, params, gate, ops)
    return model if half == "closed" else remove_closed_heads(model)


class SameBatch(NamedTuple):
    """Text for training that is the same in every step, each with the memory of the step before."""

    ids: NDArray
    targets: NDArray

    def batch(self, step: int) -> tuple[NDArray, NDArray, bool]:
        """See `tinyprune.training.step.Batches`."""
        return self.ids, self.targets, False


def training_step(backend: str, half: str | None = None, **shape: Any) -> Workload:
    """Take a step of the first stage, or of the gate stage with half of the heads closed; see `make_model`."""
    return step_workload(get_backend(backend), model_shape(**shape), half)


def step_workload(ops: Engine, measured: ModelShape, half: str | None = None) -> Workload:
    """Take a step with this backend; see `training_step`."""
    ids, targets, memory = shapes.batch(measured)
    model = make_model(measured, ops, half)
    objective = GateObjective(model.gate, 1, measured.config.heads_total) if model.gate else LanguageModelling()
    training = Training.start(model, SameBatch(ids, targets), TRAIN, objective, rng=None)
    training.memory = None if memory is None else [ops.to_device(m) for m in memory]
    noise = np.random.default_rng(0)

    def losses() -> dict[str, NDArray]:
        """Return the losses of three steps, without noise of dropout and gates."""
        training.rng = None
        return {"losses": np.array([train_step(training).losses["loss"] for _ in range(3)])}

    def run() -> None:
        training.rng = noise
        train_step(training)
        ops.synchronize()  # the loss is there before backward and optimizer have finished

    return Workload(run, losses, gauge=gauge(ops))


def decoder(backend: str, n: int, **shape: Any) -> Workload:
    """Read `n` tokens one by one, each with log p of what comes next, once the context is full."""
    measured = model_shape(**shape)
    c = measured.config
    cached = CachedDecoder(Transformer(c, parameters(measured), ops=get_backend(backend)))
    beginning, text = (part.tolist() for part in np.split(shapes.tokens(measured, c.M + c.T + n), [-n]))

    def log_probabilities() -> dict[str, NDArray]:
        """Compute them from the first token on, with an empty context."""
        cached.clear()
        return {"log_p": np.array([cached.step(token) for token in (*beginning, *text)])}

    def run(tokens: list[int] = text) -> None:
        for token in tokens:
            cached.step(token)  # to main memory, where the next token would be drawn

    run(beginning)
    return Workload(run, log_probabilities, units=n)


def normal(ops: Engine, *shape: int) -> NDArray:
    """Draw standard normal float32 numbers, on the device."""
    return ops.to_device(np.random.default_rng(0).standard_normal(shape, np.float32))


def random_tokens(V: int, size: int) -> NDArray:
    """Draw `size` tokens below V."""
    return np.random.default_rng(1).integers(0, V, size)


def layernorm(backend: str, rows: int, D: int) -> Workload:
    """LayerNorm of (rows, D), forward and backward."""
    ops = get_backend(backend)
    x, dout = normal(ops, rows, D), normal(ops, rows, D)
    scale, bias = ops.to_device(np.ones(D, np.float32)), ops.to_device(np.zeros(D, np.float32))
    return in_a_row(ops, lambda: ops.layernorm_backward(dout, ops.layernorm_forward(x, scale, bias)[1]))


def cross_entropy(backend: str, rows: int, V: int) -> Workload:
    """The loss of (rows, V) logits and its gradient. As in training the logits are overwritten, so each run starts from
    what the last one left: other numbers, the same work."""
    ops = get_backend(backend)
    logits, targets = normal(ops, rows, V), random_tokens(V, rows)
    forward, backward = ops.cross_entropy_forward, ops.cross_entropy_backward
    return in_a_row(ops, lambda: backward(1.0, forward(logits, targets, overwrite=True)[1]))


def embedding(backend: str, tokens: int, V: int, D: int) -> Workload:
    """Rows of a table (V, D), and the table's gradient."""
    ops = get_backend(backend)
    table, ids, dout = normal(ops, V, D), random_tokens(V, tokens), normal(ops, tokens, D)
    return in_a_row(ops, lambda: ops.embedding_backward(dout, ops.embedding_forward(ids, table)[1]))


def adamw(backend: str, name: str) -> Workload:
    """One update of every parameter of the model called `name`."""
    ops = get_backend(backend)
    zeros = np.zeros_like
    tensors = [
        [ops.to_device(x) for x in (param, param.copy(), zeros(param), zeros(param))]
        for param in parameters(model_shape(name)).values()
    ]
    rates: dict[str, Any] = {"lr": TRAIN.lr, "multipliers": [1.0], "decays": [TRAIN.weight_decay]}
    constants = AdamConstants(TRAIN.beta1, TRAIN.beta2, TRAIN.eps, step=1)

    def run() -> None:
        for param, grad, m, v in tensors:
            ops.adamw_updates([param], [grad], [m], [v], **rates, constants=constants)

    return in_a_row(ops, run)


def copy(backend: str, entries: int) -> Workload:
    """Measure the GPU's limit of reading and writing: copy so many entries."""
    from tinyprune.bench import limits

    ops = get_backend(backend)
    x, out = (ops.to_device(np.zeros(entries, np.float32)) for _ in range(2))
    return in_a_row(ops, lambda: limits.copy(x, out))


def multiply_adds(backend: str, threads: int, steps: int) -> Workload:
    """Measure the GPU's limit of arithmetic: so many multiply-adds in registers, in each of so many threads."""
    from tinyprune.bench import limits

    ops = get_backend(backend)
    out = ops.to_device(np.zeros(threads, np.float32))
    return in_a_row(ops, lambda: limits.multiply_and_add(steps, out))
