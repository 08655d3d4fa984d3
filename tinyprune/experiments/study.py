"""A study from its first cell to its pictures.

In the study's directory:

    cells.jsonl, baselines/   what is finished, see `store`
    study.json                which study, configuration, seeds, machine
    results.csv               a row for each model and split
    summary.csv               mean and spread over seeds
    inference.csv             (architecture) size, computation and time as heads go
    agreement.csv             (tradeoff) rank correlation of what the methods think of the heads
    plots/*.png, README.md    the same to be looked at and to be read
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyprune.bench.machine import describe_machine
from tinyprune.compilation import announced
from tinyprune.config import ModelConfig
from tinyprune.experiments.agreement import agreement
from tinyprune.experiments.cells import compute, read_text
from tinyprune.experiments.grid import OpenWorkers, missing, run_cells
from tinyprune.experiments.results import read_csv, summarise, tidy, to_csv
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import GRIDS, Entry, Plan
from tinyprune.experiments.timing import inference
from tinyprune.files import replace_file
from tinyprune.kernels.backend import get_backend
from tinyprune.stages import say
from tinyprune.tables import Record, markdown_table


def run_study(name: str, plan: Plan, directory: str | Path, workers: OpenWorkers) -> list[Record]:
    """Compute what is missing of a study, then write its tables and pictures; returns the rows of results.csv.

    Args:
        name: one of `STUDIES`.
        plan: how large it is.
        directory: where everything is kept; cells that are there already are not computed again.
        workers: who computes, see `grid`.

    Raises:
        TinypruneError: if a cell fails; what is finished is kept.
    """
    store = Store(directory)
    entries = GRIDS[name](plan)
    todo = missing([entry.cell for entry in entries], store)
    say(f"experiment {name}: {len(entries)} models, {len(todo)} of them or of their baselines still to be trained")
    if todo:
        warm_up(plan, next(iter(todo.values())))
    run_cells([entry.cell for entry in entries], store, workers, name)
    return write_results(name, plan, store)


def warm_up(plan: Plan, cell: Any) -> None:
    """Have the kernels compiled here, with a word about it, before all workers would do it at once without one."""
    stage = {"steps": 1, "B": 1}
    config = plan.config.with_options(
        {f"{table}.{k}": v for table in ("train", "gate_train", "finetune") for k, v in stage.items()}
    )
    ops = get_backend(plan.backend)
    with announced(ops):
        small = dataclasses.replace(cell, config=config)
        baseline = compute(dataclasses.replace(small, method="baseline", heads=None))
        compute(dataclasses.replace(small, method="gates", heads=1), baseline.checkpoint)


def write_results(name: str, plan: Plan, store: Store) -> list[Record]:
    """Tables and pictures of a study whose cells are all done."""
    # matplotlib takes a second to import
    from tinyprune.experiments import pictures

    entries = GRIDS[name](plan)
    V = read_text(plan.config.data).tokenizer.V
    rows = tidy(name, entries, store, V, plan.backend)
    summary = summarise(rows)
    tables = {"results": rows, "summary": summary}
    if name == "architecture":
        tables["inference"] = inference(whole_models(entries, V), plan.backend)
    if name == "tradeoff":
        tables["agreement"] = agreement(entries, store)
    for table, records in tables.items():
        write(store, f"{table}.csv", to_csv(records))
    about = {
        "study": name,
        "config": plan.config.to_dict(),
        "seeds": [plan.config.seed + i for i in range(plan.seeds)],
        "shares": list(plan.shares),
        "methods": list(plan.methods),
        "scope": plan.scope,
        "machine": describe_machine(processors_used(), ("numba",) if plan.backend == "numba" else ()),
    }
    write(store, "study.json", json.dumps(about, indent=1) + "\n")
    pictures.draw(name, store, plan, entries, {t: read_csv(to_csv(records)) for t, records in tables.items()})
    write(store, "README.md", report(name, about, summary))
    say(f"experiment {name}: {store.directory / 'README.md'}, *.csv and plots/ are written")
    return rows


def whole_models(entries: Sequence[Entry], V: int) -> dict[str, ModelConfig]:
    """Each kind of model in a study, with all its heads."""
    return {e.cell.config.model.kind: dataclasses.replace(e.cell.config.model, V=V) for e in entries}


def processors_used() -> int:
    """Threads of the timing, which are Numba's."""
    import numba

    return numba.get_num_threads()


def write(store: Store, name: str, text: str) -> None:
    """A text file of the study, whole or not at all."""
    replace_file(store.directory / name, text.encode())


def report(name: str, about: dict[str, Any], summary: Sequence[Record]) -> str:
    """README.md of a study: its table and its pictures."""
    config = about["config"]
    steps = " + ".join(str(config[stage]["steps"]) for stage in ("train", "gate_train", "finetune"))
    pictures = sorted(PICTURES[name].items())
    paragraphs = [
        f"# {name}, on {config['data']['corpus']}",
        f"Bits per character on the held-out test split, mean over {len(about['seeds'])} seeds and standard deviation "
        f"(spread); {steps} steps for every model. Written by `tinyprune experiment {name}`; the configuration is in "
        "`study.json`, a row for each model in `results.csv`.",
        markdown_table(list(summary)),
        *(f"![{text}](plots/{picture}.png)" for picture, text in pictures),
        f"Machine: {about['machine']}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


PICTURES = {
    "tradeoff": {
        "tradeoff": "Bits per character against heads that stay, for each method, with error bars",
        "kept": "Heads kept in each layer, for each method",
        "agreement": "Rank correlation between what the methods think of the heads",
        "gate_paths": "Probability of being open of every head, layer by layer, over the gate stage",
        "attention": "Where heads that were kept and heads that were removed look",
    },
    "ablation": {"ablation": "Bits per character without each stabiliser"},
    "architecture": {
        "architecture": "Quality against parameters, multiply-adds and time of both architectures",
        "inference": "Parameters, multiply-adds and time against heads, with the ideal line",
    },
}
