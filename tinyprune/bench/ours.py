"""Our side of every benchmark: the operations of a backend, and the model that is made of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench.inputs import attention_arguments, batch, matrices, parameters, tokens
from tinyprune.bench.shapes import ModelShape, model_shape
from tinyprune.bench.training import BETAS, CLIP, EPS, LR, WEIGHT_DECAY
from tinyprune.bench.work import IN_A_ROW, Gauge, Work
from tinyprune.config import GateConfig, TrainConfig
from tinyprune.kernels.backend import BACKENDS, Backend, get_backend
from tinyprune.model.generation import CachedDecoder
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import GateObjective, add_gates
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.optimizers import clip_factor, gradient_norm, make_optimizer, parameter_groups
from tinyprune.training.step import LanguageModelling

OPEN, CLOSED = 5.0, -20.0  # log_alpha of gates that do not move while we look


def waiting(backend: str) -> Callable[[], None]:
    """What returns when all is computed. An operation of the cuda backend only tells the GPU what to do."""
    if not BACKENDS[backend].on_device:
        return lambda: None
    from numba import cuda

    return cuda.synchronize


def gauge(backend: str) -> Gauge | None:
    """Of the memory that arrays take on a GPU."""
    if not BACKENDS[backend].on_device:
        return None
    from tinyprune.kernels.cuda.device.memory import POOL

    def begin() -> int:
        POOL.most_used = POOL.entries_used
        return 4 * POOL.entries_used

    return Gauge(begin, lambda: 4 * POOL.most_used)


def in_a_row(backend: str, run: Callable[[], Any], results: Callable[[], dict[str, NDArray]] = dict) -> Work:
    """A short work; on a GPU several in a row, then a wait. (In Numba's simulator one is long enough.)"""
    if not BACKENDS[backend].on_device:
        return Work(run, results)
    from tinyprune.kernels.cuda.device.jit import SIMULATED

    wait, count = waiting(backend), 1 if SIMULATED else IN_A_ROW

    def run_all() -> None:
        for _ in range(count):
            run()
        wait()

    return Work(run_all, results, units=count)


def matmul(backend: str, m: int, k: int, n: int, layout: str) -> Work:
    """One product; see `inputs.matrices`."""
    a, b = matrices(m, k, n, layout)
    options = {"transpose_a": layout == "Aᵀ·B", "transpose_b": layout == "A·Bᵀ"}
    if BACKENDS[backend].on_device:
        from tinyprune.kernels.cuda.device.array import to_device, to_host
        from tinyprune.kernels.cuda.products.matmul import matmul as multiply

        a, b = to_device(a), to_device(b)
        options["precision"] = "tf32" if backend == "cuda-tf32" else "float32"
        return in_a_row(backend, lambda: multiply(a, b, **options), lambda: {"out": to_host(multiply(a, b, **options))})
    out = np.empty((m, n), np.float32)
    if backend == "numpy":
        a, b = (a.T if layout == "Aᵀ·B" else a), (b.T if layout == "A·Bᵀ" else b)
        return Work(lambda: np.matmul(a, b, out=out), lambda: {"out": np.matmul(a, b)})
    multiply = importlib.import_module("tinyprune.kernels.cpu.matmul").matmul
    return Work(lambda: multiply(a, b, out=out, **options), lambda: {"out": multiply(a, b, **options)})


def attention(backend: str, **shape: Any) -> Work:
    """Forward + backward to all inputs."""
    shape = model_shape(**shape)
    ops, wait = get_backend(backend), waiting(backend)
    arrays, dout = attention_arguments(shape)
    arrays, dout = {name: ops.to_device(x) for name, x in arrays.items()}, ops.to_device(dout)
    rng = np.random.default_rng(0)
    options = {"span": shape.config.span, "dropout": shape.config.dropout_attention}

    def run(rng: np.random.Generator | None = rng) -> tuple[NDArray, tuple]:
        out, cache = ops.attention_forward(**arrays, **options, rng=rng)
        grads = ops.attention_backward(dout, cache)
        wait()
        return out, grads

    def results() -> dict[str, NDArray]:
        out, grads = run(rng=None)
        names = ("q", "k", "v", "r", "u", "w", "pk", "pv")
        named = {f"d{name}": grad for name, grad in zip(names, grads, strict=False) if grad is not None}
        return {name: ops.to_host(x) for name, x in ({"out": out} | named).items()}

    return Work(run, results, gauge=gauge(backend))


def make_model(shape: ModelShape, ops: Backend, half: str | None) -> Transformer:
    """The model, in training for the first time or with every second head closed.

    Args:
        half: None for all heads open and no gates; "closed" for gates that shut every second head; "removed" for the
            same without these heads.
    """
    params = parameters(shape)
    if half is None:
        return Transformer(shape.config, params, ops=ops)
    gate = GateConfig()
    params = add_gates(params, shape.config.heads, gate)
    for i in range(shape.config.L):
        params[f"layers.{i}.log_alpha"][:] = OPEN
        params[f"layers.{i}.log_alpha"][1::2] = CLOSED
    model = Transformer(shape.config, params, gate, ops)
    return model if half == "closed" else remove_closed_heads(model)


class TrainingStep:
    """Forward, loss, backward, clipping, AdamW; memory is carried from step to step."""

    def __init__(self, shape: ModelShape, ops: Backend, half: str | None) -> None:
        self.model = make_model(shape, ops, half)
        config = TrainConfig(beta1=BETAS[0], beta2=BETAS[1], eps=EPS)
        self.optimizer = make_optimizer(config, parameter_groups(self.model.params, WEIGHT_DECAY), ops)
        gate = self.model.gate
        self.objective = LanguageModelling() if gate is None else GateObjective(gate, 1, shape.config.heads_total)
        self.ids, self.targets, memory = batch(shape)
        self.memory = None if memory is None else [ops.to_device(m) for m in memory]

    def __call__(self, rng: np.random.Generator | None) -> float:
        """One step; returns the loss. `rng` draws dropout and gates, None is for none."""
        losses, self.memory, grads = self.objective(
            self.model, self.ids, self.targets, self.memory, rng, self.optimizer.steps
        )
        factor = clip_factor(gradient_norm(grads, self.model.ops), CLIP)
        self.optimizer.step(self.model.params, grads, LR, factor)
        return losses["loss"]


def training_step(backend: str, half: str | None = None, **shape: Any) -> Work:
    """A step of the first stage, or of the gate stage with half of the heads closed; see `make_model`."""
    step, wait = TrainingStep(model_shape(**shape), get_backend(backend), half), waiting(backend)
    rng = np.random.default_rng(0)

    def run() -> None:
        step(rng)
        wait()  # what follows the loss: backward and the optimizer

    return Work(run, lambda: {"losses": np.array([step(None) for _ in range(3)])}, gauge=gauge(backend))


def decoder(backend: str, n: int, **shape: Any) -> Work:
    """Read `n` tokens one by one, each with log p of what comes next, once the context is full."""
    shape = model_shape(**shape)
    cached = CachedDecoder(Transformer(shape.config, parameters(shape), ops=get_backend(backend)))
    beginning, text = (part.tolist() for part in np.split(tokens(shape, shape.config.M + shape.config.T + n), [-n]))

    def log_probabilities() -> dict[str, NDArray]:
        """From the first token on, with an empty context."""
        cached.clear()
        return {"log_p": np.array([cached.step(token) for token in (*beginning, *text)])}

    def run(tokens: list[int] = text) -> None:
        for token in tokens:
            cached.step(token)  # to main memory, where the next token would be drawn

    run(beginning)
    return Work(run, log_probabilities, units=n)
