"""One step of training: batch, losses and gradients, gradient norm, update.

This is all of training; `tinyprune.training.loop` adds checkpoints, signals, the log and the progress bar around it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import TrainConfig
from tinyprune.errors import NotFiniteError
from tinyprune.model.parameters import Parameters
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Memory, Released, Transformer
from tinyprune.training.optimizers import Optimizer, gradient_norm, parameter_groups
from tinyprune.training.schedules import learning_rate

Noise = np.random.Generator | None  # of dropout and gates; None for none
# What an objective returns: losses by name, memory for the next segment, gradients by name.
Gradients = tuple[dict[str, Any], Memory, Parameters]


class Batches(Protocol):
    """An object that supplies the text, such as `tinyprune.data.Segments`."""

    def batch(self, step: int) -> tuple[NDArray, NDArray, bool]:
        """Return ids (B, T) of step `step`, their targets (B, T), and whether the text begins anew, without memory."""


class Objective(Protocol):
    """The function that training minimises; its state, such as a controller's multipliers, is saved with the model.

    By default it has no state and adds nothing to the log.
    """

    def __call__(
        self, model: Transformer, ids: NDArray, targets: NDArray, memory: Memory | None, rng: Noise, step: int
    ) -> Gradients:
        """Return named losses, all checked and shown; memory for the next segment; gradients by name.

        A loss is a number, or an array of shape () where the backend computes: `float` would wait for a GPU.
        """

    def describe(self, model: Transformer) -> dict[str, Any]:
        """Return more entries for the log; called only when a line is written."""
        return {}

    def state(self) -> dict[str, NDArray]:
        """Return what a checkpoint must hold."""
        return {}

    def load_state(self, state: dict[str, NDArray]) -> None:
        """Continue from `state`."""
        return


class LanguageModelling(Objective):
    """Cross-entropy of the next token."""

    def __call__(
        self, model: Transformer, ids: NDArray, targets: NDArray, memory: Memory | None, rng: Noise, step: int
    ) -> Gradients:
        """See `Objective`."""
        loss, memory, cache = model.loss(ids, targets, memory, rng)
        return {"loss": loss}, memory, model.backward(1.0, cache, once=True)


@dataclass(kw_only=True)
class Training:
    """The state of a training: everything that a step reads and changes.

    Attributes:
        model: trained in place.
        segments: the training text.
        config: learning rate, clipping and so on.
        objective: the function that is minimised.
        optimizer: with a parameter group for each parameter.
        rng: noise of dropout and gates, the only source of randomness; None for none.
        step: number of updates made so far.
        memory: the memory after the last step, for each layer (B, up to M, D).
    """

    model: Transformer
    segments: Batches
    config: TrainConfig
    objective: Objective
    optimizer: Optimizer
    rng: Noise
    step: int = 0
    memory: Memory | None = None

    @classmethod
    def start(
        cls, model: Transformer, segments: Batches, config: TrainConfig, objective: Objective, rng: Noise, **more: Any
    ) -> Self:
        """Return a training before its first step, with the optimizer that `config` names.

        Gates have the learning rate of the model's `GateConfig`, and are all that is trained if that freezes the
        weights. `more` are further fields of a subclass.
        """
        trained, multiplier = list(model.params), 1.0
        if model.gate is not None:
            multiplier = model.gate.lr_multiplier
            if model.gate.frozen:
                trained = Parts(model.config).gates
        if config.optimizer.startswith("scales"):  # tables are stored row by row
            tables = [name for name, x in model.params.items() if x.ndim > 1 and not name.startswith("layers.")]
            trained = [name for name in trained if name not in tables]
        model = model.in_precision(config.precision)  # of the same parameters
        groups = parameter_groups(trained, config.weight_decay, multiplier)
        more |= {"config": config, "optimizer": Optimizer(config, groups, model.ops)}
        return cls(model=model, segments=segments, objective=objective, rng=rng, **more)


class StepResult(NamedTuple):
    """Result of one step: losses, gradient norm before clipping, learning rate."""

    losses: dict[str, float]
    grad_norm: float
    lr: float


def train_step(training: Training) -> StepResult:
    """Make one update of the model, in place.

    Raises:
        NotFiniteError: if a loss or the gradient is NaN or infinite. Parameters and moments are then unchanged.
    """
    model, config, step = training.model, training.config, training.step
    # An overflow shows in the losses or in the gradient norm, which are checked below.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # the next segment of every stream of text, and the memory of the one before it
        ids, targets, fresh = training.segments.batch(step)
        memory = None if fresh or training.memory is None else Released(training.memory)
        training.memory = None
        # forward, loss, backward
        result = training.objective(model, ids, targets, memory, training.rng, step)
        given, training.memory, grads = result
        # the update: of what is trained; gradients longer than `config.clip` are shortened as the optimizer reads them
        grads = {name: grad for name, grad in grads.items() if name in training.optimizer.groups}
        arrays, lr = list(grads.values()), learning_rate(config, step)
        norm, factor = model.ops.clipping(arrays, list(given.values()), max_norm=config.clip)
        numbers = model.ops.reading([*given.values(), norm])
        # changes nothing if a number is not finite
        training.optimizer.step(model.params, grads, lr, factor)
        # only now are they looked at: a GPU has the update to do meanwhile
        *found, norm = numbers()
        losses = dict(zip(given, found, strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"{name} is {value} in step {step + 1}")
        if not math.isfinite(norm):
            try:
                gradient_norm(grads, model.ops)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error} in step {step + 1}") from error
    training.step += 1
    return StepResult(losses, norm, lr)


def training_steps(
    model: Transformer, segments: Batches, config: TrainConfig, objective: Objective, rng: Noise
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train a model in place, without a checkpoint or a log.

    Yields the number of steps made so far, 0 … `config.steps`, and the losses of the last one by name, at first none.
    Raises NotFiniteError if a step gives numbers that are not finite.
    """
    training = Training.start(model, segments, config, objective, rng)
    yield 0, {}
    while training.step < config.steps:
        losses = train_step(training).losses
        yield training.step, losses
