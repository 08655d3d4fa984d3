"""A study from its first cell to its report: `tinyprune experiment`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyprune.config import DataConfig, load_preset
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import Cell, compute, text_of
from tinyprune.experiments.grid import OpenWorkers, missing, run_cells
from tinyprune.experiments.results import machine_of, result_rows, summarise, write_files
from tinyprune.experiments.store import Store
from tinyprune.experiments.study import Entry, Finished, Plan, Study
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.tables import Record, markdown_table
from tinyprune.warmup import announced

PRESET = "study"
# What one finishes in three minutes: the same stages, with fewer steps, sizes and seeds.
QUICK: dict[str, Any] = {"train.steps": 200, "train.warmup": 20, "gate_train.steps": 60, "finetune.steps": 40}
QUICK_SEEDS, QUICK_SHARES = 2, (0.5,)


def get_study(name: str) -> Study:
    """Return the study called `name`, one of `experiments.STUDIES`; it is imported now, and matplotlib with it."""
    return import_module(f"tinyprune.experiments.studies.{name}").STUDY


def make_plan(
    study: str, preset: str | None = None, options: dict[str, Any] | None = None, quick: bool = False, **sizes: Any
) -> Plan:
    """Make a plan from the command line's values.

    Args:
        preset: of model and stages; None for `PRESET` with the study's own changes.
        options: `{"table.key": value}`, see `RunConfig.with_options`.
        quick: fewer steps, seeds and shares, where they are not given.
        sizes: other fields of `Plan`; None for the default.
    """
    about = get_study(study)
    changes = about.changes if preset is None else {}
    config = load_preset(preset or PRESET).with_options(changes | (QUICK if quick else {}) | (options or {}))
    given = {name: value for name, value in sizes.items() if value is not None}
    usual: dict[str, Any] = (
        {"seeds": min(about.seeds, QUICK_SEEDS), "shares": QUICK_SHARES} if quick else {"seeds": about.seeds}
    )
    return Plan(config, digest=text_of(config.data).digest, **usual | given)


def run_study(
    name: str, plan: Plan, directory: str | Path, workers: OpenWorkers, compile_first: bool = True
) -> list[Record]:
    """Compute the cells that a study lacks, then write its tables and pictures; returns the rows of results.csv.

    With `compile_first` the kernels are compiled once in this process, so that the workers, who share the cache, need
    not.

    Raises UsageError if the tokenizer has `<unk>`, which makes bits per character meaningless, and what
    `grid.run_cells` raises.
    """
    get_backend(plan.backend)  # raises if there is no such backend
    text = text_of(plan.config.data, plan.digest)
    if not all(text.characters.values()):
        raise UsageError("studies compare bits per character, which need a tokenizer without <unk>: character or byte")
    store = Store(directory)
    entries = get_study(name).entries(plan)
    cells = [entry.cell for entry in entries]
    if compile_first and not BACKENDS[plan.backend].on_device and missing(cells, store):  # a GPU's kernels are not kept
        compile_kernels(name, cells[0])
    run_cells(cells, store, workers, name)
    return write_results(name, plan, entries, store)


def compile_kernels(what: str, cell: Cell) -> None:
    """Train the model of a cell for one step, so that the kernels of its training are compiled, and say so."""
    small: dict[str, Any] = {f"{stage}.{k}": 1 for stage in ("train", "gate_train", "finetune") for k in ("steps", "B")}
    text = DataConfig(valid_fraction=0.01, test_fraction=0.01)  # of a long text the evaluations would take minutes
    with announced(get_backend(cell.backend), f"experiment {what}"):
        config = dataclasses.replace(cell.config.with_options(small), data=text)
        short = dataclasses.replace(cell, config=config, digest=None, method="gates", heads=1)
        compute(short, compute(short.baseline).checkpoint)


def write_results(name: str, plan: Plan, entries: Sequence[Entry], store: Store) -> list[Record]:
    """Write the files of a study whose cells are all done; returns the rows of results.csv."""
    study, V = get_study(name), text_of(plan.config.data, plan.digest).tokenizer.V
    rows = result_rows(name, entries, store, V, plan.backend)
    done = Finished(entries, store, {"results": rows, "summary": summarise(rows)})
    done.tables.update(study.tables(done))
    corpus = Path(plan.config.data.corpus).name  # without the folder of a file
    about = {
        "study": name,
        "config": plan.config.to_dict() | {"data": plan.config.data.to_dict() | {"corpus": corpus}},
        "text_sha256": plan.digest,
        "seeds": [plan.config.seed + i for i in range(plan.seeds)],
        "shares": list(plan.shares),
        "machine": machine_of(plan.backend),
    }
    write_files(store.directory, about, done.tables, study.pictures(done), page(about, done.tables))
    return rows


def page(about: dict[str, Any], tables: dict[str, list[Record]]) -> list[str]:
    """Return the paragraphs of README.md; `about` is study.json."""
    name, config = about["study"], about["config"]
    steps = " or ".join(f"{total:,}" for total in sorted({row["steps_total"] for row in tables["results"]}))
    seeds = f"{len(about['seeds'])} seed" + "s" * (len(about["seeds"]) > 1)
    paragraphs = [
        f"# {name}, on {config['data']['corpus']}",
        f"Bits per character on the held-out test split, mean over {seeds} and standard deviation (spread), "
        f"after {steps} steps of training. Written by `tinyprune experiment {name}`; "
        "the configuration is in `study.json`, a row for each model in `results.csv`.",
        markdown_table(tables["summary"]),
    ]
    if tables.get("comparison"):
        references = " or ".join(f"*{name}*" for name in dict.fromkeys(r["reference"] for r in tables["comparison"]))
        paragraphs += [
            f"How many more bits per character than {references}, with as many heads and the same seed: mean "
            f"of the differences and their standard deviation. Above 0, {references} is better.",
            markdown_table(tables["comparison"]),
        ]
    return paragraphs
