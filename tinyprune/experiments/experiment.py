"""A study: what it consists of, how large it is made, and its way from the first cell to its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tinyprune.config import DataConfig, RunConfig, load_preset
from tinyprune.errors import UsageError, nearest
from tinyprune.experiments.cells import Cell, compute, text_of
from tinyprune.experiments.grid import OpenWorkers, missing, run_cells
from tinyprune.experiments.intervals import student
from tinyprune.experiments.methods import COMPARED, SMALL_LONGER
from tinyprune.experiments.results import Picture, machine_of, result_rows, summarise, write_files
from tinyprune.experiments.store import Store
from tinyprune.io.tables import Record, markdown_table
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.training.warmup import announced

PRESET = "study"
# What one finishes in some minutes: the same stages, with fewer steps, sizes and seeds.
QUICK: dict[str, Any] = {"train.steps": 200, "train.warmup": 20, "gate_train.steps": 60, "heal.steps": 40}
QUICK_SEEDS, QUICK_SHARES = 2, (0.5,)
SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)  # of the heads, that stay


@dataclass(frozen=True)
class Entry:
    """A cell and its name in a study's tables."""

    method: str
    cell: Cell

    @property
    def seed(self) -> int:
        """Return the cell's seed."""
        return self.cell.config.seed


def check_choices(shares: Sequence[float], total: int, methods: Sequence[str], known: Iterable[str]) -> None:
    """Raise UsageError unless `shares` of `total` heads are different numbers, and `methods` are among the `known`."""
    known = tuple(known)
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise UsageError(f"shares must be numbers from 0 to 1, got {list(shares)}")
    for method in methods:
        if method not in known:
            raise UsageError(f"methods must be among {', '.join(known)}; got {method!r}{nearest(method, known)}")
    if len(set(methods)) < len(methods):
        raise UsageError(f"methods must be different, got {', '.join(methods)}")
    heads = [round(share * total) for share in shares]
    if len(set(heads)) < len(heads):
        raise UsageError(f"shares must stand for different numbers of heads; {list(shares)} are {heads}")


def check_aligned(entries: Sequence[Entry]) -> None:
    """Raise UsageError unless all models that a study compares were trained alike.

    They have read the same text to the same place, have as many restarts of the optimizer, and end at a low learning
    rate. Not compared is a baseline that others start from; and a `SMALL_LONGER` model has as many multiply-adds.
    """
    seen: dict[Any, str] = {}
    starts = {entry.cell.baseline.key for entry in entries if entry.cell.baseline}
    for entry in entries:
        if entry.cell.method == SMALL_LONGER or entry.cell.key in starts:
            continue
        stages = entry.cell.trained
        trained = [entry.cell.stages[stage] for stage in stages]
        if trained[-1].schedule == "constant" or not trained[-1].steps:
            last = f"{stages[-1]} needs steps and a schedule that falls"
            raise UsageError(f"models are read at a low learning rate: {last}")
        seen.setdefault((sum(stage.B * stage.steps for stage in trained), len(trained)), entry.method)
    if len(seen) > 1:
        raise UsageError(f"{' and '.join(seen.values())} have not read the same text in as many stages")


@dataclass(frozen=True)
class Plan:
    """How large a study is."""

    config: RunConfig  # model, text and stages; its seed is the first one
    seeds: int = 3  # how many
    shares: Sequence[float] = SHARES
    methods: Sequence[str] = COMPARED
    scope: str = "global"  # where criteria compare heads, see `masks.keep_best`
    backend: str = "numba"
    digest: str | None = None  # sha256 of the text

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}")
        check_choices(self.shares, self.config.model.heads_total, self.methods, COMPARED)

    def configs(self) -> list[RunConfig]:
        """Return one configuration for each seed."""
        return [dataclasses.replace(self.config, seed=self.config.seed + i) for i in range(self.seeds)]

    def entry(self, name: str, config: RunConfig, method: str, share: float | None = None) -> Entry:
        """Return the cell of one method that keeps a share of the heads, called `name` in the tables."""
        heads = None if share is None else round(share * self.config.model.heads_total)
        return Entry(name, Cell(config, method, heads, self.scope, self.backend, self.digest))


@dataclass(frozen=True)
class Finished:
    """A study whose cells are all done."""

    entries: Sequence[Entry]
    store: Store  # the cells' records
    tables: dict[str, list[Record]]  # by name: "results", "summary", then the study's own


@dataclass(frozen=True)
class Study:
    """Everything that one study does not share with the others."""

    entries: Callable[[Plan], list[Entry]]  # all names, shares and seeds stand for different cells
    tables: Callable[[Finished], dict[str, list[Record]]]  # by file name; "comparison" is explained in README.md
    pictures: Callable[[Finished], Iterable[Picture]]


def get_study(name: str) -> Study:
    """Return the study called `name`, one of `experiments.STUDIES`; it is imported now, and matplotlib with it."""
    return import_module(f"tinyprune.experiments.studies.{name}").STUDY


def make_plan(
    preset: str | None = None, options: dict[str, Any] | None = None, quick: bool = False, **sizes: Any
) -> Plan:
    """Make a plan from the command line's values.

    Args:
        preset: of model and stages; None for `PRESET`.
        options: `{"table.key": value}`, see `RunConfig.with_options`.
        quick: fewer steps, seeds and shares, where they are not given.
        sizes: other fields of `Plan`; None for the default.
    """
    config = load_preset(preset or PRESET).with_options((QUICK if quick else {}) | (options or {}))
    usual: dict[str, Any] = {"seeds": QUICK_SEEDS, "shares": QUICK_SHARES} if quick else {}
    given = {name: value for name, value in sizes.items() if value is not None}
    return Plan(config, digest=text_of(config.data).digest, **usual | given)


def run_study(
    name: str, plan: Plan, directory: str | Path, workers: OpenWorkers, compile_first: bool = True
) -> list[Record]:
    """Compute the cells that a study lacks, then write its tables and pictures; returns the rows of results.csv.

    With `compile_first` the kernels are compiled once in this process, so that the workers, who share the cache, need
    not.

    Raises UsageError if the tokenizer has `<unk>`, which makes bits per character meaningless, what `check_aligned` and
    `intervals.student` raise, and what `grid.run_cells` raises.
    """
    student()
    get_backend(plan.backend)  # raises if there is no such backend
    text = text_of(plan.config.data, plan.digest)
    if not all(text.characters.values()):
        raise UsageError("studies compare bits per character, which need a tokenizer without <unk>: character or byte")
    store = Store(directory)
    entries = get_study(name).entries(plan)
    check_aligned(entries)
    cells = [entry.cell for entry in entries]
    if compile_first and not BACKENDS[plan.backend].on_device and missing(cells, store):  # a GPU's kernels are not kept
        compile_kernels(name, cells[0])
    run_cells(cells, store, workers, name)
    return write_results(name, plan, entries, store)


def compile_kernels(what: str, cell: Cell) -> None:
    """Train the model of a cell for one step, so that the kernels of its training are compiled, and say so."""
    small: dict[str, Any] = {f"{stage}.{k}": 1 for stage in ("train", "gate_train", "heal") for k in ("steps", "B")}
    text = DataConfig(valid_fraction=0.01, test_fraction=0.01)  # of a long text the evaluations would take minutes
    with announced(get_backend(cell.backend), f"experiment {what}"):
        config = dataclasses.replace(cell.config.with_options(small), data=text)
        short = dataclasses.replace(cell, config=config, digest=None, method="gates", heads=1)
        compute(short, compute(short.baseline).checkpoint)


def write_results(name: str, plan: Plan, entries: Sequence[Entry], store: Store) -> list[Record]:
    """Write the files of a study whose cells are all done; returns the rows of results.csv."""
    study, rows = get_study(name), result_rows(name, entries, store)
    done = Finished(entries, store, {"results": rows, "summary": summarise(rows)})
    done.tables.update(study.tables(done))
    corpus = Path(plan.config.data.corpus).name  # without the folder of a file
    config = plan.config.to_dict() | {"data": plan.config.data.to_dict() | {"corpus": corpus}}
    about = {"study": name, "config": config, "text_sha256": plan.digest}
    about |= {"seeds": [plan.config.seed + i for i in range(plan.seeds)], "shares": list(plan.shares)}
    about |= {"machine": machine_of(plan.backend)}
    write_files(store.directory, about, done.tables, study.pictures(done), page(about, done.tables))
    return rows


def page(about: dict[str, Any], tables: dict[str, list[Record]]) -> list[str]:
    """Return the paragraphs of README.md; `about` is study.json."""
    name, config = about["study"], about["config"]
    steps = " or ".join(f"{total:,}" for total in sorted({row["steps_total"] for row in tables["results"]}))
    seeds = f"{len(about['seeds'])} seed" + "s" * (len(about["seeds"]) > 1)
    paragraphs = [
        f"# {name}, on {config['data']['corpus']}",
        f"Bits per character on both held-out splits, means over {seeds}, and the standard deviation (spread) of their "
        f"mean, after {steps} steps of training. Written by `tinyprune experiment {name}`; "
        "the configuration is in `study.json`, a row for each model in `results.csv`.",
        markdown_table(tables["summary"]),
    ]
    if tables.get("comparison"):
        names = list(dict.fromkeys(r["reference"] for r in tables["comparison"]))
        references = " or ".join(f"*{name}*" for name in names) if len(names) < 4 else "*the reference*"
        paragraphs += [
            f"How many more bits per character than {references}, with as many heads and the same seeds, on both "
            "splits and their mean, whose 95 % interval (low, high) is pooled over methods and seeds; beside it that "
            "of the pair alone. p has Holm's correction, and a true difference of *smallest* is found with 80 % power. "
            f"Above 0, {references} is better; *level* lies within 0.01, *open* is not decided.",
            markdown_table(tables["comparison"]),
        ]
    return paragraphs
