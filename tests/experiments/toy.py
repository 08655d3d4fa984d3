"""Studies small enough to be run by the dozen: a text of 7,000 characters and models of four heads."""

from pathlib import Path
from typing import Any

from command import MODEL, write_text

from tinyprune.config import RunConfig
from tinyprune.experiments.cells import Cell
from tinyprune.experiments.studies import Plan

STAGE = {"B": 2, "lr": 2e-3}
STEPS = {"train": 12, "gate_train": 8, "finetune": 4}


def toy_config(directory: Path, seed: int = 0, **options: Any) -> RunConfig:
    """A configuration on a text in `directory`; `options` are "table.key" with __ for the dot."""
    path = directory / "book.txt"
    if not path.exists():
        write_text(directory)
    tables = {"model": MODEL, "data": {"corpus": str(path)}, "gate": {"lr_multiplier": 100.0}, "seed": seed}
    tables |= {stage: STAGE | {"steps": steps} for stage, steps in STEPS.items()}
    return RunConfig.from_dict(tables).with_options({k.replace("__", "."): v for k, v in options.items()})


def toy_plan(directory: Path, **options: Any) -> Plan:
    """Two seeds, half of the heads, two methods, on the textbook: nothing is compiled."""
    given = {"seeds": 2, "shares": (0.5,), "methods": ("random", "gates"), "backend": "numpy"} | options
    return Plan(toy_config(directory), **given)


def toy_cell(directory: Path, method: str = "baseline", heads: int | None = None, **options: Any) -> Cell:
    """One cell, on the textbook."""
    return Cell(toy_config(directory, **options), method, heads, backend="numpy")
