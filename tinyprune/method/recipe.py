"""What the method is told: a recipe, which is plain data, and who watches while it works.

A recipe has the tables of a run's file that come after [train]:

    [choose]       which parts stay, and how many                (ChooseConfig)
    [gate]         the gates and their loss, if gates choose     (GateConfig)
    [gate_train]   how gates, and weights with them, are trained (TrainConfig)
    [repair]       what is fitted when the others are removed    (RepairConfig)
    [heal]         how what stays is trained                     (TrainConfig)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyprune.config import ChooseConfig, GateConfig, RepairConfig, RunConfig, TrainConfig
from tinyprune.data import Segments
from tinyprune.model.parts import Scores
from tinyprune.model.transformer import Transformer
from tinyprune.training.step import Objective, training_steps

# Returns the generator of a purpose: "scores" for criteria, or the name of a stage for its noise.
Generators = Callable[[str], np.random.Generator]


@dataclass(frozen=True)
class Recipe:
    """The settings of the method.

    Attributes:
        choose: which parts stay.
        gate, gate_train: the gates, if these choose, and their training.
        repair: nothing is fitted if it has no tokens.
        heal: the settings of each stage that trains what stays, by its name.
    """

    choose: ChooseConfig
    gate: GateConfig = field(default_factory=GateConfig)
    gate_train: TrainConfig = field(default_factory=TrainConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)
    heal: Mapping[str, TrainConfig] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig) -> Recipe:
        """Return the recipe of a run's file."""
        return cls(config.choose, config.gate, config.gate_train, config.repair, {"finetune": config.heal})


@dataclass
class Stage:
    """A model that is to be trained in place, on what, and how.

    Attributes:
        name: "train", "gate" or "finetune".
        finish: what ends the stage after its last step, such as meeting the target exactly; returns a number for the
            log.
    """

    name: str
    model: Transformer
    segments: Segments
    config: TrainConfig
    objective: Objective
    rng: np.random.Generator
    finish: Callable[[Transformer], int] = lambda model: 0

    def steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Train, and yield what `training_steps` does. Raises NotFiniteError if numbers are not finite."""
        return training_steps(self.model, self.segments, self.config, self.objective, self.rng)


class Watch:
    """What a caller of the method adds to it. By default nothing: no checkpoint, no log, no bar."""

    def fit(self, stage: Stage) -> None:
        """Train a stage to its end, and finish it."""
        for _ in stage.steps():
            pass
        stage.finish(stage.model)

    def scored(self, scores: Scores) -> None:
        """Take notice of the scores by which parts are chosen."""

    def read(self, what: str, tokens: Any) -> None:
        """Take notice of a text, (n,), that is read to choose or to repair."""
