"""Healing by distillation: the smaller model learns from the text and from what the whole model predicts for it."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from numpy.typing import NDArray

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.model.transformer import Memory, Transformer
from tinyprune.training.checkpoints import release
from tinyprune.training.step import Gradients, Noise, Objective


class Distillation(Objective):
    """The objective is `ops.distillation`: cross-entropy, and the divergence from the teacher's predictions.

    The teacher reads the same segments with a separate memory, which is saved with the training.

    Args:
        teacher: the whole model; it is not modified.
        share: weight of the divergence, 0 … 1; the cross-entropy has the rest.

    Raises:
        UsageError: if the teacher has an adaptive softmax.
    """

    def __init__(self, teacher: Transformer, share: float) -> None:
        if teacher.config.cutoffs:
            raise UsageError("heal.distill must be 0 for an adaptive softmax, which has no such loss")
        self.teacher = teacher
        self.share = share
        self.memory: Memory | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return an objective with the same teacher, which is never modified, before its first step."""
        return type(self)(self.teacher, self.share)

    def __call__(
        self, model: Transformer, ids: NDArray, targets: NDArray, memory: Memory | None, rng: Noise, step: int
    ) -> Gradients:
        """See `Objective`."""
        self.teacher = self.teacher.in_precision(model.ops.precision)
        t, own = self.teacher, None if memory is None else self.memory
        release_weights = partial(release, t.params)  # where they are mapped, a layer at a time is in memory
        h, self.memory, _ = t.forward(ids, own, recompute=True, after_layer=release_weights)
        loss, memory, cache = model.loss(ids, targets, memory, rng, teacher=t.log_probabilities(h), share=self.share)
        release_weights()
        return {"loss": loss}, memory, model.backward(1.0, cache, once=True)

    def state(self) -> dict[str, NDArray]:
        """Return the teacher's memory, (B, up to M, D) for each layer."""
        return {f"memory.{i}": self.teacher.ops.to_host(m) for i, m in enumerate(self.memory or [])}

    def load_state(self, state: dict[str, NDArray]) -> None:
        """Continue with the teacher's memory. Raises CheckpointError if the checkpoint is not of a distillation."""
        names = [f"memory.{i}" for i in range(self.teacher.config.L if self.teacher.config.M else 0)]
        if state and set(state) != set(names):
            raise CheckpointError("the checkpoint was made with another setting of heal.distill; resume with that")
        self.memory = [self.teacher.ops.to_device(state[name]) for name in names] if state else None
