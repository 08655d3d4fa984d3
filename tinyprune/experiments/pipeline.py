"""The steps in which every model becomes smaller: choose heads, repair what stays, remove the others, heal, measure.

`cells` makes the models of a study in these steps, and `compare` those of one checkpoint. How heads are chosen and what
is measured is said there; what both have in common is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import TrainConfig
from tinyprune.data import Segments
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance import Mask, with_heads
from tinyprune.pruning.importance.fits import BlockFit
from tinyprune.pruning.repair import repaired_from
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.distillation import Distillation
from tinyprune.training.step import LanguageModelling, Objective, Training, train_step


def repair_and_remove(
    whole: Transformer, mask: Mask, repair: str = "", fits: Sequence[Sequence[BlockFit]] = ()
) -> Transformer:
    """Return a model with the heads of `mask` only, in new arrays.

    Args:
        whole: the model with all its heads; it is not modified.
        mask: which heads of each layer stay.
        repair: how what stays is fitted to the whole model's outputs, see `pruning.repair`; "" leaves it as it is.
        fits: what the repair has read, see `importance.fits`.
    """
    closed = repaired_from(whole, mask, fits, repair) if repair else with_heads(whole, mask)
    return remove_closed_heads(closed)


def healing_objective(whole: Transformer, distill: float) -> Objective:
    """Return what healing minimises: the cross-entropy, of which a share may be the divergence from the whole model."""
    return Distillation(whole, distill) if distill else LanguageModelling()


def training_steps(
    model: Transformer,
    tokens: NDArray,
    config: TrainConfig,
    objective: Objective,
    rng: np.random.Generator,
    already: int = 0,
) -> Iterator[int]:
    """Train a model in place; yield the number of steps made so far, from 0 to `config.steps`.

    Args:
        tokens: the training text; it is read from where the `already` steps made before have stopped.
        rng: noise of dropout and gates.

    Raises:
        NotFiniteError: if a step gives numbers that are not finite.
    """
    segments = Segments(tokens, config.B, model.config.T, read=already)
    training = Training.start(model, segments, config, objective, rng)
    yield 0
    while training.step < config.steps:
        train_step(training)
        yield training.step
