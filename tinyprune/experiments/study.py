"""A study from its first cell to its pictures.

In the study's directory:

    cells.jsonl, baselines/   what is finished, see `store`
    study.json                which study, configuration, seeds, machine
    results.csv               a row for each model and split
    summary.csv               mean and spread over seeds
    comparison.csv            how far methods are from the one that the study is about
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

from tinyprune.bench.machine import describe_machine, processors
from tinyprune.config import ModelConfig
from tinyprune.errors import Interrupted, UsageError
from tinyprune.experiments.agreement import agreement
from tinyprune.experiments.cells import compute, read_text
from tinyprune.experiments.grid import OpenWorkers, missing, run_cells
from tinyprune.experiments.results import compare, compare_sizes, summarise, tidy, to_csv
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import ALL_THREE, GRIDS, KINDS, Entry, Plan
from tinyprune.experiments.timing import inference
from tinyprune.files import replace_file
from tinyprune.kernels.backend import BACKENDS, get_backend
from tinyprune.progress import say
from tinyprune.tables import Record, markdown_table
from tinyprune.warmup import announced


def run_study(
    name: str, plan: Plan, directory: str | Path, workers: OpenWorkers, compile_first: bool = True
) -> list[Record]:
    """Compute what is missing of a study, then write its tables and pictures; returns the rows of results.csv.

    Args:
        name: one of `STUDIES`.
        plan: how large it is.
        directory: where everything is kept; cells that are there already are not computed again.
        workers: who computes, see `grid`.
        compile_first: have the kernels compiled here before all workers, who share what is compiled, do it at once.

    Raises:
        UsageError: if the text has words that are `<unk>`, so that bits per character mean nothing, or if another
            process is at work in the directory.
        TinypruneError: if a cell fails; what is finished is kept.
        Interrupted: after Ctrl-C; what is finished is kept.
    """
    get_backend(plan.backend)  # complains if there is no such
    text = read_text(plan.config.data, plan.digest)
    if not all(text.characters.values()):
        raise UsageError("studies compare bits per character, which need a tokenizer without <unk>: character or byte")
    store = Store(directory)
    entries = GRIDS[name](plan)
    with store.locked():
        todo = missing([entry.cell for entry in entries], store)
        say(f"experiment {name}: {len(entries)} models, {len(todo)} of them or of their baselines still to be trained")
        try:
            if todo and compile_first and not BACKENDS[plan.backend].on_device:  # nothing compiled for a GPU is kept
                compile_kernels(entries)
            run_cells([entry.cell for entry in entries], store, workers, name)
            return write_results(name, plan, store)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; {len(store.records)} models are kept in {store.directory}; the same command goes on"
            ) from error


def compile_kernels(entries: Sequence[Entry]) -> None:
    """Train a model of each kind for a step, so that what its training needs is compiled, with a word about it."""
    small = {f"{stage}.{k}": 1 for stage in ("train", "gate_train", "finetune") for k in ("steps", "B")}
    with announced(get_backend(entries[0].cell.backend)):
        for kind in {entry.cell.config.model.kind: entry.cell for entry in entries}.values():
            cell = dataclasses.replace(kind, config=kind.config.with_options(small), method="gates", heads=1)
            compute(cell, compute(cell.baseline).checkpoint)


def write_results(name: str, plan: Plan, store: Store) -> list[Record]:
    """Tables and pictures of a study whose cells are all done."""
    # matplotlib takes a second to import
    from tinyprune.experiments import pictures

    entries = GRIDS[name](plan)
    V = read_text(plan.config.data, plan.digest).tokenizer.V
    rows = tidy(name, entries, store, V, plan.backend)
    tables = {"results": rows, "summary": summarise(rows)}
    if name == "architecture":
        tables["comparison"] = compare_sizes(rows, KINDS[1], KINDS[0])
        tables["inference"] = inference(whole_models(entries, V), plan.backend)
    elif name == "ablation":
        tables["comparison"] = compare(rows, ALL_THREE)
    else:
        tables["comparison"] = compare(rows, "gates")
        tables["agreement"] = agreement(entries, store)
    for table, records in tables.items():
        if records:
            write(store, f"{table}.csv", to_csv(records))
    about = {
        "study": name,
        "config": plan.config.to_dict() | {"data": plan.config.data.to_dict() | {"corpus": corpus_name(plan)}},
        "text_sha256": plan.digest,
        "seeds": [plan.config.seed + i for i in range(plan.seeds)],
        "shares": list(plan.shares),
        "machine": describe_machine(
            timing_threads(plan.backend), BACKENDS[plan.backend].packages, BACKENDS[plan.backend].on_device
        ),
    }
    write(store, "study.json", json.dumps(about, indent=1) + "\n")
    drawn = pictures.draw(name, store, entries, tables)
    write(store, "README.md", report(about, tables, drawn))
    say(f"experiment {name}: {store.directory / 'README.md'}, *.csv and plots/ are written")
    return rows


def corpus_name(plan: Plan) -> str:
    """Of the text, without the folder of a file."""
    return Path(plan.config.data.corpus).name


def whole_models(entries: Sequence[Entry], V: int) -> dict[str, ModelConfig]:
    """Each kind of model in a study, with all its heads."""
    return {e.cell.config.model.kind: dataclasses.replace(e.cell.config.model, V=V) for e in entries}


def timing_threads(backend: str) -> int:
    """Threads with which times are measured."""
    if backend != "numba":
        return processors()
    import numba

    return numba.get_num_threads()


def write(store: Store, name: str, text: str) -> None:
    """A text file of the study, whole or not at all."""
    replace_file(store.directory / name, text.encode())


def report(about: dict[str, Any], tables: dict[str, list[Record]], drawn: Sequence[str]) -> str:
    """README.md of a study: its tables and its pictures."""
    name, config = about["study"], about["config"]
    steps = " + ".join(str(config[stage]["steps"]) for stage in ("train", "gate_train", "finetune"))
    paragraphs = [
        f"# {name}, on {config['data']['corpus']}",
        f"Bits per character on the held-out test split, mean over {len(about['seeds'])} seeds and standard deviation "
        f"(spread); {steps} steps for every model but the baseline. Written by `tinyprune experiment {name}`; the "
        "configuration is in `study.json`, a row for each model in `results.csv`.",
        markdown_table(tables["summary"]),
    ]
    if tables["comparison"]:
        reference = tables["comparison"][0]["reference"]
        sizes = "as many parameters" if name == "architecture" else "as many heads"
        paragraphs += [
            f"How many more bits per character than *{reference}*, with {sizes} and the same seed: mean of the "
            f"differences and their standard deviation. Above 0, *{reference}* is better.",
            markdown_table(tables["comparison"]),
        ]
    paragraphs += [f"![{PICTURES[picture]}](plots/{picture}.png)" for picture in drawn]
    return "\n\n".join([*paragraphs, f"Machine: {about['machine']}."]) + "\n"


PICTURES = {
    "tradeoff": "Bits per character against heads that stay, for each method, with error bars",
    "kept": "Heads kept in each layer, for each method",
    "agreement": "Rank correlation between what the methods think of the heads",
    "gate_paths": "Probability of being open of every head, layer by layer, over the gate stage",
    "attention": "Where heads that were kept and heads that were removed look",
    "ablation": "Bits per character without each stabiliser",
    "architecture": "Quality against parameters, multiply-adds and time of both architectures",
    "inference": "Parameters, multiply-adds and time against heads, with the ideal line",
}
