"""Our side of every benchmark: operations of a backend, and the model that is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload, shapes
from tinyprune.bench.shapes import (
    TOKENS,
    TRAIN,
    ModelShape,
    attention_arguments,
    file_text,
    full_text,
    model_shape,
    parameters,
    reading,
)
from tinyprune.config import GateConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.method.gates import GateObjective, add_gates
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.generation import CachedDecoder
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pretrained import read_pretrained
from tinyprune.pretrained.gguf_writer import stored_matrices
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


def start_training(ops: Engine, shape: ModelShape, half: str | None, precision: str = "float32") -> Training:
    """Begin to train, without noise, on the same batch again and again, each time with the memory of the last step."""
    ids, targets, memory = shapes.batch(shape)
    model = make_model(shape, ops, half)
    objective = LanguageModelling()
    if model.gate:
        objective = GateObjective(model.gate, 1, shape.config.heads_total)
    same = SimpleNamespace(batch=lambda step: (ids, targets, False))
    training = Training.start(model, same, replace(TRAIN, precision=precision), objective, rng=None)
    if memory is not None:
        training.memory = [ops.to_device(m) for m in memory]
    return training


def training_step(backend: str, half: str | None = None, precision: str = "float32", **shape: Any) -> Workload:
    """Take a step of the first stage, or of the gate stage with half of the heads closed; see `make_model`."""
    ops = get_backend(backend)
    training = start_training(ops, model_shape(**shape), half, precision)
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


def reading_memory(backend: str, size: int) -> Workload:
    """Read so many bytes of float32 numbers once, by sums of columns: no token takes less that needs all of them."""
    ops, x = get_backend(backend), np.ones((size // 4096, 1024), np.float32)
    return Workload(lambda: ops.column_sums(x))


def decoder(backend: str, name: str) -> Workload:
    """Read a text token by token, with keys and values kept, once the context is full; see `shapes.reading`."""
    shape = model_shape(name)
    model = Transformer(shape.config, parameters(shape), ops=get_backend(backend))
    return reading_by(CachedDecoder(model), full_text(shape.config))


def file_decoder(backend: str, path: str) -> Workload:
    """Read a text token by token with the model of a GGUF file, whose matrices are multiplied as they are stored."""
    given = read_pretrained(path)
    model = Transformer(replace(given.config, T=TOKENS), given.params, ops=get_backend(backend))
    return reading_by(CachedDecoder(model, stored_matrices(model, Path(path))), file_text())


def reading_by(decoder: CachedDecoder, text: list[int]) -> Workload:
    """Return `shapes.reading` by our decoder."""
    return reading(decoder.clear, lambda token: decoder.predict(decoder.read_token(token)), text)
