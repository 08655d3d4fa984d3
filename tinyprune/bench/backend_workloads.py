"""Our side of every benchmark: operations of a backend, and the model that is made of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload, shapes
from tinyprune.bench.shapes import TRAIN, ModelShape, attention_arguments, model_shape, parameters
from tinyprune.config import GateConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.method.gates import GateObjective, add_gates
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.training.step import LanguageModelling, Training, train_step

OPEN, CLOSED = 5.0, -20.0  # log_alpha of gates that stay as they are during a measurement


def blas(n: int) -> Workload:
    """Compute the product of two square float32 matrices by NumPy's BLAS."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
    out = np.empty((n, n), np.float32)
    return Workload(lambda: np.matmul(a, b, out=out))


def attention(backend: str, **shape: Any) -> Workload:
    """Compute attention forward and backward to all inputs; see `shapes.model_shape` for `shape`."""
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

    return Workload(run, results)


def make_model(shape: ModelShape, ops: Engine, half: str | None) -> Transformer:
    """Make the model with all heads and no gates; with `half` every second head is "closed" by a gate, or "removed"."""
    params = parameters(shape)
    if half is None:
        return Transformer(shape.config, params, ops=ops)
    gate = GateConfig(lr_multiplier=1.0)
    params = add_gates(params, shape.config, gate)
    for i in range(shape.config.L):
        params[f"layers.{i}.log_alpha"][:] = OPEN
        params[f"layers.{i}.log_alpha"][1::2] = CLOSED
    model = Transformer(shape.config, params, gate, ops)
    return model if half == "closed" else remove_closed_heads(model)


def training_step(backend: str, half: str | None = None, precision: str = "float32", **shape: Any) -> Workload:
    """Take a step of the first stage, or of the gate stage with half of the heads closed; see `make_model`."""
    ops, measured = get_backend(backend), model_shape(**shape)
    ids, targets, memory = shapes.batch(measured)
    model = make_model(measured, ops, half)
    objective = LanguageModelling()
    if model.gate:
        objective = GateObjective(model.gate, 1, measured.config.heads_total)
    same = SimpleNamespace(batch=lambda step: (ids, targets, False))  # each with the memory of the step before
    training = Training.start(model, same, replace(TRAIN, precision=precision), objective, rng=None)
    if memory is not None:
        training.memory = [ops.to_device(m) for m in memory]
    noise = np.random.default_rng(0)

    def losses() -> dict[str, NDArray]:
        """Return the losses of three steps, without noise of dropout and gates."""
        training.rng = None
        return {"losses": np.array([train_step(training).losses["loss"] for _ in range(3)])}

    def run() -> None:
        training.rng = noise
        train_step(training)
        ops.synchronize()  # the loss is there before backward and optimizer have finished

    return Workload(run, losses)
