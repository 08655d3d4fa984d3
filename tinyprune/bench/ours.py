"""Our side of every benchmark: the operations of a backend, and the model that is made of them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench.inputs import attention_arguments, batch, matrices, parameters, tokens
from tinyprune.bench.shapes import ModelShape, model_shape
from tinyprune.bench.training import BETAS, CLIP, EPS, LR, WEIGHT_DECAY
from tinyprune.bench.work import Work
from tinyprune.config import GateConfig, TrainConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.generation import CachedDecoder
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import GateObjective, add_gates
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.loop import LanguageModelling
from tinyprune.training.optimizers import clip_factor, gradient_norm, make_optimizer, parameter_groups

OPEN, CLOSED = 5.0, -20.0  # log_alpha of gates that do not move while we look


def matmul(backend: str, m: int, k: int, n: int, layout: str) -> Work:
    """One product; see `inputs.matrices`."""
    a, b = matrices(m, k, n, layout)
    out = np.empty((m, n), np.float32)
    if backend == "numpy":
        a, b = (a.T if layout == "Aᵀ·B" else a), (b.T if layout == "A·Bᵀ" else b)
        return Work(lambda: np.matmul(a, b, out=out), lambda: {"out": np.matmul(a, b)})
    multiply = importlib.import_module("tinyprune.kernels.cpu.matmul").matmul
    options = {"transpose_a": layout == "Aᵀ·B", "transpose_b": layout == "A·Bᵀ"}
    return Work(lambda: multiply(a, b, out=out, **options), lambda: {"out": multiply(a, b, **options)})


def attention(backend: str, **shape: Any) -> Work:
    """Forward + backward to all inputs."""
    shape = model_shape(**shape)
    ops = get_backend(backend)
    arrays, dout = attention_arguments(shape)
    rng = np.random.default_rng(0)
    options = {"span": shape.config.span, "dropout": shape.config.dropout_attention}

    def run(rng: np.random.Generator | None = rng) -> tuple[NDArray, tuple]:
        out, cache = ops.attention_forward(**arrays, **options, rng=rng)
        return out, ops.attention_backward(dout, cache)

    def results() -> dict[str, NDArray]:
        out, grads = run(rng=None)
        names = ("q", "k", "v", "r", "u", "w", "pk", "pv")
        named = {f"d{name}": grad for name, grad in zip(names, grads, strict=False) if grad is not None}
        return {"out": out} | named

    return Work(run, results)


def make_model(shape: ModelShape, ops: SimpleNamespace, half: str | None) -> Transformer:
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

    def __init__(self, shape: ModelShape, ops: SimpleNamespace, half: str | None) -> None:
        self.model = make_model(shape, ops, half)
        config = TrainConfig(beta1=BETAS[0], beta2=BETAS[1], eps=EPS)
        self.optimizer = make_optimizer(config, parameter_groups(self.model.params, WEIGHT_DECAY), ops)
        gate = self.model.gate
        self.objective = LanguageModelling() if gate is None else GateObjective(gate, 1, shape.config.heads_total)
        self.ids, self.targets, self.memory = batch(shape)

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
    step = TrainingStep(model_shape(**shape), get_backend(backend), half)
    rng = np.random.default_rng(0)
    return Work(lambda: step(rng), lambda: {"losses": np.array([step(None) for _ in range(3)])})


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
            cached.step(token)

    run(beginning)
    return Work(run, log_probabilities, units=n)
