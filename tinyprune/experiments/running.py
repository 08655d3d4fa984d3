"""A study from its first cell to its report.

A study's directory contains:

    cells.jsonl, baselines/   what is finished, see `store`
    study.json                study, configuration, seeds, machine
    results.csv               a row for each model and split
    summary.csv               mean and spread over seeds
    comparison.csv            differences from the method that the study is about
    inference.csv             (architecture) size, computation and time as heads are removed
    agreement.csv             (tradeoff) rank correlation between the methods' scores of the heads
    plots/*.png, README.md    the same as pictures and as text
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyprune.config import DataConfig, load_preset
from tinyprune.errors import Interrupted, UsageError
from tinyprune.experiments.cells import compute, read_text
from tinyprune.experiments.grid import OpenWorkers, missing, run_cells
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import summarise, tidy, to_csv
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import get_study
from tinyprune.files import replace_file
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.machine import describe_machine, processors
from tinyprune.plots import save_figure
from tinyprune.progress import say
from tinyprune.tables import Record, markdown_table
from tinyprune.warmup import announced

PRESET = "study"
# What one finishes in three minutes: the same stages, with fewer steps, sizes and seeds.
QUICK: dict[str, Any] = {"train.steps": 200, "train.warmup": 20, "gate_train.steps": 60, "finetune.steps": 40}
QUICK_SEEDS, QUICK_SHARES = 2, (0.5,)


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
    usual: dict[str, Any] = {"seeds": about.seeds, "shares": about.shares, "methods": about.methods}
    if quick:
        usual |= {"seeds": min(about.seeds, QUICK_SEEDS), "shares": QUICK_SHARES}
    return Plan(config, digest=read_text(config.data).digest, **usual | given)


def run_study(
    name: str, plan: Plan, directory: str | Path, workers: OpenWorkers, compile_first: bool = True
) -> list[Record]:
    """Compute the cells that a study lacks, then write its tables and pictures; returns the rows of results.csv.

    With `compile_first` the kernels are compiled once in this process, so that the workers, who share the cache, need
    not.

    Raises:
        UsageError: if the tokenizer has `<unk>`, which makes bits per character meaningless, or if another process is
            at work in the directory.
        TinypruneError: if a cell fails; what is finished is kept.
        Interrupted: after Ctrl-C; what is finished is kept.
    """
    get_backend(plan.backend)  # raises if there is no such backend
    text = read_text(plan.config.data, plan.digest)
    if not all(text.characters.values()):
        raise UsageError("studies compare bits per character, which need a tokenizer without <unk>: character or byte")
    store = Store(directory)
    entries = get_study(name).entries(plan)
    with store.locked():
        todo = missing([entry.cell for entry in entries], store)
        say(f"experiment {name}: {len(entries)} models, {len(todo)} of them or of their baselines still to be trained")
        try:
            if todo and compile_first and not BACKENDS[plan.backend].on_device:  # nothing compiled for a GPU is kept
                compile_kernels(name, entries)
            run_cells([entry.cell for entry in entries], store, workers, name)
            return write_results(name, plan, entries, store)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; {len(store.records)} models are kept in {store.directory}; the same command goes on"
            ) from error


def compile_kernels(what: str, entries: Sequence[Entry]) -> None:
    """Train a model of each kind for one step, so that the kernels of its training are compiled, and say so."""
    small: dict[str, Any] = {f"{stage}.{k}": 1 for stage in ("train", "gate_train", "finetune") for k in ("steps", "B")}
    text = DataConfig(valid_fraction=0.01, test_fraction=0.01)  # of a long text the evaluations would take minutes
    with announced(get_backend(entries[0].cell.backend), f"experiment {what}"):
        cells = [entry.cell for entry in entries]
        for kind in {(c.config.model.kind, c.config.model.persistent, c.config.model.bias): c for c in cells}.values():
            config = dataclasses.replace(kind.config.with_options(small), data=text)
            cell = dataclasses.replace(kind, config=config, digest=None, method="gates", heads=1)
            compute(cell, compute(cell.baseline).checkpoint)


def write_results(name: str, plan: Plan, entries: Sequence[Entry], store: Store) -> list[Record]:
    """Write tables, pictures and report of a study whose cells are all done; returns the rows of results.csv.

    The pictures of an earlier run are removed.
    """

    def write(file: str, text: str) -> None:
        replace_file(store.directory / file, text.encode())

    study, V = get_study(name), read_text(plan.config.data, plan.digest).tokenizer.V
    rows = tidy(name, entries, store, V, plan.backend)
    done = Finished(entries, store, V, {"results": rows, "summary": summarise(rows, study.split)})
    done.tables.update(study.tables(done))
    for table, records in done.tables.items():
        if records:
            write(f"{table}.csv", to_csv(records))
    corpus = Path(plan.config.data.corpus).name  # without the folder of a file
    about = {
        "study": name,
        "config": plan.config.to_dict() | {"data": plan.config.data.to_dict() | {"corpus": corpus}},
        "text_sha256": plan.digest,
        "seeds": [plan.config.seed + i for i in range(plan.seeds)],
        "shares": list(plan.shares),
        "machine": machine_of(plan.backend),
    }
    write("study.json", json.dumps(about, indent=1) + "\n")
    plots, captions = store.directory / "plots", {}
    for picture, caption, figure in study.pictures(done):
        captions[picture] = caption
        save_figure(figure, plots / f"{picture}.png")
    for path in plots.glob("*.png"):
        if path.stem not in captions:
            path.unlink()
    write("README.md", report(about, done.tables, captions, study))
    say(f"experiment {name}: {store.directory / 'README.md'}, *.csv and plots/ are written")
    return rows


def machine_of(backend: str) -> str:
    """Describe the machine and the threads with which a backend computes."""
    chosen, threads = BACKENDS[backend], processors()
    if backend == "numba":
        import numba

        threads = numba.get_num_threads()
    return describe_machine(threads, chosen.packages, chosen.on_device)


def report(about: dict[str, Any], tables: dict[str, list[Record]], captions: dict[str, str], study: Study) -> str:
    """Return README.md of a study, with its tables and pictures; `about` is study.json, `captions` by picture."""
    name, config = about["study"], about["config"]
    steps = " or ".join(f"{total:,}" for total in sorted({row["steps_total"] for row in tables["results"]}))
    seeds = f"{len(about['seeds'])} seed" + "s" * (len(about["seeds"]) > 1)
    split = {"test": "held-out test", "valid": "validation"}[study.split]
    paragraphs = [
        f"# {name}, on {config['data']['corpus']}",
        f"Bits per character on the {split} split, mean over {seeds} and standard deviation (spread), "
        f"after {steps} steps of training. Written by `tinyprune experiment {name}`; "
        "the configuration is in `study.json`, a row for each model in `results.csv`.",
        markdown_table(tables["summary"]),
    ]
    if tables["comparison"]:
        references = " or ".join(f"*{name}*" for name in dict.fromkeys(r["reference"] for r in tables["comparison"]))
        paragraphs += [
            f"How many more bits per character than {references}, with as many {study.equal} and the same seed: mean "
            f"of the differences and their standard deviation. Above 0, {references} is better.",
            markdown_table(tables["comparison"]),
        ]
    paragraphs += [f"![{caption}](plots/{picture}.png)" for picture, caption in captions.items()]
    return "\n\n".join([*paragraphs, f"Machine: {about['machine']}."]) + "\n"
