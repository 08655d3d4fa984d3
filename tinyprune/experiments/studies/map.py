"""Map: gates against one-shot criteria over the share of heads, the length of the gate stage, and healing after it.

Models that are compared have the same baseline and the same number of steps: a criterion chooses at once, and the model
that it leaves is trained for as many steps as the gate stage takes, and then heals as long. The learning rate is
constant, so that one training can be read at several lengths of healing. In the shortest gate stage the weights are
frozen.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from tinyprune.config import RunConfig
from tinyprune.experiments.experiment import Entry, Finished, Picture, Plan, Study
from tinyprune.experiments.pictures import plot_map
from tinyprune.experiments.results import spread
from tinyprune.tables import Record

RIVALS = ("michel", "leave-one-out", "output-difference", "random")
STAGES = (0.03, 0.1, 0.3, 1.0)  # lengths of the gate stage, as shares of the training before it
HEALING = (0.0, 0.05, 0.2, 1.0)  # lengths of healing, as shares of the longest
CHANGES = {"train.steps": 1000, "finetune.schedule": "constant", "finetune.steps": 1000}


def entries(plan: Plan) -> list[Entry]:
    """Gates with each length of their stage, and criteria, whose only training is read at all the sums of lengths."""
    stages, lengths = steps_of(STAGES, plan.config.train.steps), steps_of(HEALING, plan.config.finetune.steps)
    sums = tuple(sorted({stage + healing for stage in stages for healing in lengths}))
    made = []
    for config in plan.configs():
        for share in plan.shares:
            for steps in stages:
                own = with_stage(config, steps, frozen=steps == stages[0])
                made.append(with_readings(plan.entry(title(steps), own, "gates", share), lengths))
            alone = with_stage(config, 0, sums[-1])
            made += [with_readings(plan.entry(method, alone, method, share), sums) for method in RIVALS]
    return made


def steps_of(shares: Sequence[float], whole: int) -> tuple[int, ...]:
    """Return shares of a number of steps, rounded; each number once."""
    return tuple(dict.fromkeys(round(share * whole) for share in shares))


def title(steps: int) -> str:
    """Return the name of gates with a stage of this length in the tables."""
    return f"gates: {steps} steps"


def with_stage(config: RunConfig, steps: int, healing: int | None = None, frozen: bool = False) -> RunConfig:
    """Return the run with a gate stage and a healing of these lengths; in a frozen stage weights do not move."""
    gate, stage = config.gate, dataclasses.replace(config.gate_train, steps=steps)
    if frozen:
        # Gates keep their learning rate, which is a multiple of the weights'; within few steps it must be larger.
        still = 1e-12
        gate = dataclasses.replace(gate, lr_multiplier=3 * gate.lr_multiplier * stage.lr / still)
        stage = dataclasses.replace(stage, lr=still)
    finetune = config.finetune if healing is None else dataclasses.replace(config.finetune, steps=healing)
    return dataclasses.replace(config, gate=gate, gate_train=stage, finetune=finetune)


def with_readings(entry: Entry, readings: tuple[int, ...]) -> Entry:
    """Return the entry with a cell that is read after these steps of healing."""
    return dataclasses.replace(entry, cell=dataclasses.replace(entry.cell, readings=readings))


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare gates with each criterion, paired by seed, at every point of the map. Above 0 gates are better."""
    bits: dict[tuple[str, int, int, int], float] = {}  # by method, heads, seed and steps after the choice
    for entry in done.entries:
        for reading in done.store.record(entry.cell)["readings"]:
            bits[entry.method, entry.cell.heads, entry.seed, reading["step"]] = reading["test"]
    seeds = sorted({entry.seed for entry in done.entries})
    heads = sorted({entry.cell.heads for entry in done.entries}, reverse=True)
    config = done.entries[0].cell.config
    found: list[Record] = []
    for count in heads:
        for stage in steps_of(STAGES, config.train.steps):
            for healing in steps_of(HEALING, config.finetune.steps):
                own = [bits[title(stage), count, seed, healing] for seed in seeds]
                for method in RIVALS:
                    other = [bits[method, count, seed, stage + healing] for seed in seeds]
                    difference = [b - a for a, b in zip(own, other, strict=True)]
                    found.append(
                        {"heads_open": count, "gate_steps": stage, "healing": healing, "method": method}
                        | {"gates": statistics.fmean(own), "bits_per_character": statistics.fmean(other)}
                        | {"difference": statistics.fmean(difference), "spread": spread(difference)}
                        | {"seeds": len(seeds)}
                    )
    return {"map": found}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw the map."""
    caption = "Where gates win and where the best criterion does: Michel, Leave-one-out, Output difference or Random"
    yield "map", caption, plot_map(done.tables["map"])


STUDY = Study(entries, tables, pictures, changes=CHANGES, seeds=5)
