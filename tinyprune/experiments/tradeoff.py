"""The trade-off: quality against the number of heads that stay, by every method.

`tinyprune experiment tradeoff` trains baselines of several seeds, lets each method make smaller models
of all of them, and compares the methods with Michel's criterion, random heads and gates. Its models are
independent cells (`cells`), computed by any `concurrent.futures.Executor` (`grid`) and stored one by
one (`store`); from their records come the tables (`results`, `intervals`) and the pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyprune.config import DataConfig, RunConfig, load_preset
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import Cell, compute, text_of
from tinyprune.experiments.factorial import effects
from tinyprune.experiments.grid import OpenWorkers, missing, run_cells
from tinyprune.experiments.intervals import compared, scipy_stats
from tinyprune.experiments.methods import (
    BASELINE,
    COMPARED,
    FACTORIAL,
    KNOWN,
    UNPRUNED,
    check_choices,
)
from tinyprune.experiments.pictures import plot_differences, plot_effects, plot_tradeoff
from tinyprune.experiments.results import (
    Picture,
    machine_of,
    result_rows,
    summarise,
    write_files,
)
from tinyprune.experiments.store import Store
from tinyprune.io.tables import Record, markdown_table
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.training.warmup import announced

NAME = "tradeoff"
PRESET = "study"
REFERENCES = "michel", "random", "gates"  # methods that the others are compared with
# What one finishes in some minutes: the same stages, with fewer steps, sizes and seeds.
QUICK: dict[str, Any] = {
    "train.steps": 200,
    "train.warmup": 20,
    "gate_train.steps": 60,
    "heal.steps": 40,
}
QUICK_SEEDS, QUICK_SHARES = 2, (0.5,)
SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)  # of the heads, that stay


@dataclass(frozen=True)
class Tradeoff:
    """The settings of the study, and the models that it consists of.

    All of them are trained in the same stages. A model is read after stage finetune, which has to end
    at a low learning rate.
    """

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
        check_choices(self.shares, self.config.model.heads_total, self.methods, KNOWN)
        if self.config.heal.schedule == "constant" or not self.config.heal.steps:
            needed = "finetune needs steps and a schedule that falls"
            raise UsageError(f"models are read at a low learning rate: {needed}")

    @property
    def cells(self) -> list[Cell]:
        """Return for each seed the baseline, what it comes to unpruned, and each method at each share."""
        made = []
        for i in range(self.seeds):
            config = dataclasses.replace(self.config, seed=self.config.seed + i)
            made += [self.cell(config, method) for method in (BASELINE, UNPRUNED)]
            made += [self.cell(config, m, share) for m in self.methods for share in self.shares]
        return made

    def cell(self, config: RunConfig, method: str, share: float | None = None) -> Cell:
        """Return the cell of one method that keeps a share of the heads."""
        heads = None if share is None else round(share * config.model.heads_total)
        return Cell(config, method, heads, self.scope, self.backend, self.digest)


def make_tradeoff(
    preset: str | None = None,
    options: dict[str, Any] | None = None,
    quick: bool = False,
    **sizes: Any,
) -> Tradeoff:
    """Return the study that the command line asks for.

    Args:
        preset: of model and stages; None for `PRESET`.
        options: `{"table.key": value}`, see `RunConfig.with_options`.
        quick: fewer steps, seeds and shares, where they are not given.
        sizes: other fields of `Tradeoff`; None for the default.
    """
    usual: dict[str, Any] = {"seeds": QUICK_SEEDS, "shares": QUICK_SHARES} if quick else {}
    given = {name: value for name, value in sizes.items() if value is not None}
    config = load_preset(preset or PRESET)
    if quick:
        config = config.with_options(QUICK)
    config = config.with_options(options or {})
    return Tradeoff(config, digest=text_of(config.data).digest, **usual | given)


def run_tradeoff(
    study: Tradeoff, directory: str | Path, workers: OpenWorkers, compile_first: bool = True
) -> list[Record]:
    """Compute the cells that are missing, then write tables and pictures; return the rows of results.csv.

    With `compile_first` the kernels are compiled once in this process, so that the workers, who share
    the cache, need not.

    Raises UsageError if the tokenizer has `<unk>`, which makes bits per character meaningless, and what
    `intervals.scipy_stats` and `grid.run_cells` raise.
    """
    scipy_stats()
    get_backend(study.backend)  # raises if there is no such backend
    text = text_of(study.config.data, study.digest)
    if not all(text.characters.values()):
        needed = "a tokenizer without <unk>: character or byte"
        raise UsageError(f"studies compare bits per character, which need {needed}")
    store, cells = Store(directory), study.cells
    on_device = BACKENDS[study.backend].on_device  # a GPU's kernels are not kept
    if compile_first and not on_device and missing(cells, store):
        compile_kernels(cells[0])
    run_cells(cells, store, workers, NAME)
    return write_results(study, store)


def compile_kernels(cell: Cell) -> None:
    """Train the model of a cell for one step, so that the kernels of its training are compiled."""
    stages = ("train", "gate_train", "heal")
    small: dict[str, Any] = {f"{stage}.{key}": 1 for stage in stages for key in ("steps", "B")}
    # of a long text the evaluations would take minutes
    text = DataConfig(valid_fraction=0.01, test_fraction=0.01)
    with announced(get_backend(cell.backend), f"experiment {NAME}"):
        config = dataclasses.replace(cell.config.with_options(small), data=text)
        short = dataclasses.replace(cell, config=config, digest=None, method="gates", heads=1)
        compute(short, compute(short.baseline).checkpoint)


def write_results(study: Tradeoff, store: Store) -> list[Record]:
    """Write tables and pictures of a study whose cells are all done; return the rows of results.csv."""
    rows = result_rows(NAME, study.cells, store)
    tables = {"results": rows, "summary": summarise(rows), "comparison": compared(rows, *REFERENCES)}
    config = study.config.to_dict()
    config["data"]["corpus"] = Path(study.config.data.corpus).name  # without the folder of a file
    about = {
        "study": NAME,
        "config": config,
        "text_sha256": study.digest,
        "seeds": [study.config.seed + i for i in range(study.seeds)],
        "shares": list(study.shares),
        "machine": machine_of(study.backend),
    }
    if study.seeds > 1 and set(FACTORIAL) <= set(study.methods):
        tables["effects"] = effects(rows)
    write_files(store.directory, about, tables, pictures(tables), page(about, tables))
    return rows


def pictures(tables: dict[str, list[Record]]) -> list[Picture]:
    """Return the picture of all models (of one number of heads: their differences from a reference), and of effects."""
    found = tables["comparison"]
    if len({row["heads_open"] for row in found}) == 1:
        of = found[0]["reference"]
        caption = f"How many more bits per character than {of} each method needs, with intervals"
        made = [(NAME, caption, plot_differences([row for row in found if row["reference"] == of]))]
    else:
        caption = "Bits per character against heads that stay, with error bars"
        made = [(NAME, caption, plot_tradeoff(tables["summary"], found))]
    if "effects" in tables:
        caption = "What choice, repair and distillation each change in bits per character, with intervals"
        made.append(("effects", caption, plot_effects(tables["effects"])))
    return made


def page(about: dict[str, Any], tables: dict[str, list[Record]]) -> list[str]:
    """Return the paragraphs of README.md; `about` is study.json."""
    totals = sorted({row["steps_total"] for row in tables["results"]})
    steps = " or ".join(f"{total:,}" for total in totals)
    seeds = f"{len(about['seeds'])} seed" + "s" * (len(about["seeds"]) > 1)
    paragraphs = [
        f"# {NAME}, on {about['config']['data']['corpus']}",
        f"Bits per character on both held-out splits, means over {seeds}, and the standard deviation "
        f"(spread) of their mean, after {steps} steps of training. Written by `tinyprune experiment "
        f"{NAME}`; the configuration is in `study.json`, a row for each model in `results.csv`.",
        markdown_table(tables["summary"]),
    ]
    if tables["comparison"]:
        names = dict.fromkeys(row["reference"] for row in tables["comparison"])
        references = " or ".join(f"*{name}*" for name in names)
        paragraphs += [
            f"How many more bits per character than {references}, with as many heads and the same "
            "seeds, on both splits and their mean. The interval (low, high: 95 %) and p are those of a paired "
            "t test, p with Holm's correction for this table; p flip is that of the sign-flip test. A true "
            "difference of *smallest* is found with 80 % power. "
            f"Above 0, {references} is better; *level* lies within 0.01, *open* is not decided.",
            markdown_table(tables["comparison"]),
        ]
    if "effects" in tables:
        paragraphs += [
            "What each part of the recipe changes, in bits per character (below 0: it helps): the choice, against "
            "random heads; the repair and the distillation, where heads are chosen in this way. Intervals (low, high: "
            "95 %) and p are those of a paired t test over seeds, uncorrected; mixed low and mixed high are those of a "
            "mixed model of all arms. *share*: of the way from random heads alone to the whole recipe, averaged over "
            "the orders in which its parts can be added.",
            markdown_table(tables["effects"]),
        ]
    return paragraphs
