"""Prune the baseline of one run by every method, to several numbers of heads: `tinyprune compare RUN`.

The work is a list of cells, each of which is one of these, and may read the records of cells before it:

    whole     the baseline as it is, measured
    scores    what a criterion says of all heads, once for all numbers of heads
    pruned    heads chosen and removed, what stays repaired if that is part of the method
    repaired  the heads of a pruned cell, and what stays fitted by least squares, see `pruning.repair`
    healed    the model of a pruned cell trained as the run's table `finetune` says, all for as many steps; and the
              baseline trained alike, since training on the text would help it as well

Criteria read the validation split, repairs and training the training split; the test split is read for the reported
numbers alone. The model may be large: beside the baseline there is one other in memory, and cells are computed one
after the other by all threads. `store` saves the record of each finished cell.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig, RunConfig, TrainConfig
from tinyprune.data import Segments, Text
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import NOT_IN_KEYS, Outcome, key_of
from tinyprune.experiments.experiment import check_choices
from tinyprune.experiments.grid import run_cells, this_process
from tinyprune.experiments.methods import METHODS
from tinyprune.experiments.pictures import plot_perplexity
from tinyprune.experiments.pipeline import healing_objective, repair_and_remove
from tinyprune.experiments.results import grouped, machine_of, mean_of, spread_of, write_files
from tinyprune.experiments.store import Store
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.progress import say
from tinyprune.pruning.gates import hit_target, open_heads, with_new_gates
from tinyprune.pruning.importance import ALL_CRITERIA, CRITERIA, Mask, keep_best
from tinyprune.pruning.importance.fits import BlockFit, read_fits
from tinyprune.pruning.importance.least_squares import search
from tinyprune.runs.directory import RunDirectory, load_model, text_of
from tinyprune.tables import Record, markdown_table
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import Objective, training_steps
from tinyprune.warmup import announced

SCORED = ("michel", "output-difference", "magnitude", "random", "leave-one-out", "flap")
SCORES = {"michel-global": ALL_CRITERIA["michel-global"]}
SCORES |= {name: CRITERIA[METHODS[name].criterion] for name in SCORED}
COMPARED = ("gates", *SCORES, "least-squares")  # methods, in the order in which they are computed
SEEDED = ("gates", "random")  # the others have one result
REVISION = 1  # with another number everything is computed again


def repair_of(method: str) -> str:
    """Return the repair that is part of a method, "" for none."""
    return METHODS[method].repair if method in METHODS else ""


@dataclass(frozen=True)
class CheckpointCell:
    """One cell, see above. `grid` and `store` use its key, to_dict, baseline and name."""

    what: str  # "whole", "scores", "pruned", "repaired" or "healed"
    method: str  # one of `COMPARED`, or "whole"
    seed: int
    depends: dict[str, Any]  # what else the result depends on, plain values: see `Comparison.depends`
    heads: int | None = None  # how many stay in all layers together; None for all of them
    steps: int = 0  # of healing
    baseline = None  # the checkpoint is at hand: no cell needs another's weights

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: all that the result depends on."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A hash of `to_dict()`."""
        return key_of(self.to_dict())

    def __str__(self) -> str:
        heads = "" if self.heads is None else f", {self.heads} heads"
        steps = f", {self.steps} steps" if self.steps else ""
        return f"{self.method}, seed {self.seed}{heads}: {self.what}{steps}"


@dataclass(frozen=True)
class Comparison:
    """The baseline and the settings of one comparison; it lists its cells, computes one, and makes tables of all."""

    name: str  # of the model
    model: Transformer  # the baseline, with all its heads
    digest: str  # sha256 of its checkpoint
    text: Text
    config: RunConfig  # of which gate, gate_train, finetune and the first seed are used
    backend: str
    methods: Sequence[str]
    shares: Sequence[float]  # shares of the heads that stay, in 0 … 1: a model for each
    seeds: int  # how many seeds, for the methods in `SEEDED`
    tokens: int  # how many of the test split are read
    score_tokens: int  # how many of the validation split criteria read
    repair_tokens: int  # how many of the training split repairs read
    sample: int  # how many of the validation split leave-one-out reads, once for each head
    heal: Sequence[int]  # numbers of steps: a healed model for each
    heal_methods: Sequence[str]  # the methods whose models are repaired and healed

    def __post_init__(self) -> None:
        T = self.model.config.T
        check_choices(self.shares, self.total, self.methods, COMPARED)
        lows = {"seeds": 1, "tokens": 2} | dict.fromkeys(("score_tokens", "repair_tokens", "sample"), T + 1)
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if any(steps < 1 for steps in self.heal) or len(set(self.heal)) < len(self.heal):
            raise UsageError(f"heal must be different numbers of steps, or 0 for none; got {list(self.heal)}")
        if unknown := set(self.heal_methods) - set(self.methods):
            raise UsageError(f"heal-methods must be among {', '.join(self.methods)}; got {', '.join(sorted(unknown))}")
        if "flap" in self.methods and not self.model.config.biased_outputs:
            raise UsageError("methods must be without flap: its means go into biases, and this model has none")

    @property
    def total(self) -> int:
        """Return how many heads the baseline has."""
        return sum(self.model.config.heads)

    @cached_property
    def cells(self) -> list[CheckpointCell]:
        """All cells: the baseline, the pruned models after their scores, the healed ones."""
        numbers = sorted((round(share * self.total) for share in self.shares), reverse=True)
        first = self.config.seed
        cells = [CheckpointCell("whole", "whole", first, self.depends("whole", self.tokens))]
        for method in sorted(self.methods, key=COMPARED.index):
            seeds = range(first, first + (self.seeds if method in SEEDED else 1))
            if method in SCORES:
                cells += [CheckpointCell("scores", method, seed, self.depends(method, 0)) for seed in seeds]
            depends = self.depends(method, self.tokens)
            cells += [CheckpointCell("pruned", method, seed, depends, heads) for heads in numbers for seed in seeds]
        cells += [
            dataclasses.replace(cell, what="repaired", depends=cell.depends | {"repair_reads": self.repair_tokens})
            for cell in cells
            if cell.what == "pruned" and cell.method in self.heal_methods and not repair_of(cell.method)
        ]
        finetune = {"finetune": settings(self.config.finetune) | {"steps": None}}  # each cell has its steps
        return cells + [
            dataclasses.replace(cell, what="healed", steps=steps, depends=cell.depends | finetune)
            for cell in cells
            for steps in self.heal
            if cell.what == "whole" or (cell.what == "pruned" and cell.method in self.heal_methods)
        ]

    def depends(self, method: str, tokens: int) -> dict[str, Any]:
        """Return what the result of a cell depends on: a method's settings, and `tokens` of the test split.

        A cell's key is a hash of it, so that a cell is computed again if one of these values changes, and only then.
        """
        splits = [len(split) for split in (self.text.train, self.text.valid, self.text.test)]
        about = {"revision": REVISION, "model": self.digest, "text": self.text.digest, "splits": splits}
        about |= {"backend": self.backend, "tokens": tokens}
        if method == "gates":
            gate = {name: x for name, x in self.gate(None).to_dict().items() if name not in ("lam", "target_heads")}
            return about | {"gate": gate, "gate_train": settings(self.config.gate_train)}
        if repair_of(method):
            about |= {"repair_reads": self.repair_tokens}
        if method == "least-squares":
            about |= {"costs": "relative"}
        reads = {"leave-one-out": self.sample, "magnitude": 0, "random": 0, "whole": 0, "least-squares": 0}
        return about | {"reads": reads.get(method, self.score_tokens)}  # how many tokens of the validation split

    def gate(self, heads: int | None) -> GateConfig:
        """Return the run's gates, on frozen weights, that leave so many heads open."""
        return dataclasses.replace(self.config.gate, frozen=True, target_heads=heads)

    @cached_property
    def fits(self) -> list[list[BlockFit]]:
        """The least-squares problems of all layers."""
        return read_fits(self.model, self.text.train[: self.repair_tokens])

    def compute(self, cell: CheckpointCell, store: Store) -> dict[str, Any]:
        """Return a cell's record: scores, or a model's measurements and which heads were kept."""
        valid = self.text.valid[: cell.depends.get("reads")]
        if cell.what == "scores":
            scores = SCORES[cell.method](self.model, valid, np.random.default_rng([cell.seed, 0]))
            return {"scores": [[float(f"{x:.6g}") for x in layer] for layer in scores]}
        if cell.what == "whole":
            return self.measure(self.model) | {"heads_shifted": None}
        mask, shifted = self.choose(cell, store)
        repair = "least-squares" if cell.what == "repaired" else repair_of(cell.method)
        model = repair_and_remove(self.model, mask, repair, self.fits if repair else ())
        if cell.what == "healed":
            config = dataclasses.replace(self.config.finetune, steps=cell.steps)
            self.train(model, config, healing_objective(self.model, config.distill), [cell.seed, 2])
        kept = [np.flatnonzero(layer).tolist() for layer in mask]
        return self.measure(model) | {"heads_shifted": shifted, "kept": kept}

    def choose(self, cell: CheckpointCell, store: Store) -> tuple[Mask, int | None]:
        """Return which heads stay, and how many gates had to be closed at the end; `earlier` cells may have decided."""
        heads = cell.heads or 0
        if cell.what in ("repaired", "healed"):
            before = self.earlier("whole" if cell.heads is None else "pruned", cell, store)
            return self.mask(before), before["heads_shifted"]
        if cell.method == "gates":
            config = self.config.gate_train
            gated, objective = with_new_gates(self.model, self.gate(heads), config.steps // 2)
            self.train(gated, config, objective, [cell.seed, 1])
            shifted = hit_target(gated)
            return open_heads(gated), shifted
        if cell.method == "least-squares":
            return search(self.fits, heads, relative=True), None
        scores = self.earlier("scores", cell, store)["scores"]
        return keep_best([np.array(x) for x in scores], heads), None

    def earlier(self, what: str, cell: CheckpointCell, store: Store) -> dict[str, Any]:
        """Return the record of the cell `what` with the same method and seed, which comes before `cell`."""
        wanted = (what, cell.method, cell.seed, cell.heads if what == "pruned" else None)
        return next(store.records[c.key] for c in self.cells if (c.what, c.method, c.seed, c.heads) == wanted)

    def mask(self, record: dict[str, Any]) -> list[NDArray[np.bool_]]:
        """Return which heads of each layer a model kept, by its record; all if it is the baseline's."""
        kept = record.get("kept", [range(H) for H in self.model.config.heads])
        return [np.isin(range(H), ids) for H, ids in zip(self.model.config.heads, kept, strict=True)]

    def train(self, model: Transformer, config: TrainConfig, objective: Objective, seed: list[int]) -> None:
        """Train a model in place, from the beginning of the text."""
        segments = Segments(self.text.train, config.B, model.config.T)
        for _ in training_steps(model, segments, config, objective, np.random.default_rng(seed)):
            pass

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Return quality on the held-out text, and size."""
        tokens, characters = self.text.test[: self.tokens], self.text.characters["test"]
        share = len(tokens) / len(self.text.test)
        bpe = self.text.tokenizer.kind == "bpe"  # whose tokens have different lengths
        result = evaluate(model, tokens, len(self.text.tokenizer.decode(tokens)) if bpe else round(share * characters))
        return {
            "heads_removed": self.total - sum(model.config.heads),
            "heads_total": self.total,
            "perplexity": min(result.perplexity, 1e300),  # JSON has no infinity
            "bits_per_character": result.bits_per_character,
            "parameters": count_parameters(model.config),
            "megabytes": sum(x.nbytes for x in model.params.values()) / 1e6,
            "heads_by_layer": " ".join(map(str, model.config.heads)),
        }

    # Tables of finished cells.

    def rows(self, store: Store) -> list[Record]:
        """Return a row for each model, the baseline's first; `steps` are the steps of healing, 0 before it.

        `repair` says how what stays was fitted to a text, without a step of training; see `pruning.repair`.
        `heads_shifted` is how many gates had to be closed at the end to meet the number (opened if negative).
        """
        return [
            {"method": cell.method, "seed": cell.seed, "steps": cell.steps}
            | {"repair": "least-squares" if cell.what == "repaired" else repair_of(cell.method) or "none"}
            | {name: value for name, value in store.records[cell.key].items() if name != "kept"}
            for cell in self.cells
            if cell.what != "scores"
        ]


def summarise(rows: Sequence[Record]) -> list[Record]:
    """Return means over seeds and the perplexity's standard deviation, by method, number of heads, healing, repair.

    Bits per character are None where words of the text became `<unk>`.
    """
    names = ("method", "heads_removed", "steps", "repair")
    return [
        {name: group[0][name] for name in names}
        | {"perplexity": mean_of(group, "perplexity"), "spread": spread_of(group, "perplexity")}
        | {name: mean_of(group, name) for name in ("bits_per_character", "megabytes")}
        | {"seeds": len(group)}
        for group in grouped(rows, *names).values()
    ]


def settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a stage that its result depends on."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_IN_KEYS}


def open_comparison(
    run: str | Path, backend: str, options: dict[str, Any], corpus: str | None = None, **sizes: Any
) -> Comparison:
    """Read the baseline and the text of the run in a directory, with some of its settings changed.

    `corpus`: where the text lies now, or another text. `sizes` are the other fields of `Comparison`; where `methods`,
    `heal_methods` or `heal` are None, they are all that the model allows, all methods, and the steps of the run's table
    finetune. Raises UsageError if there is no such run, its baseline is unfinished, or a value is not allowed;
    CheckpointError if the baseline cannot be read.
    """
    for name in options:
        if name.partition(".")[0] not in ("gate", "gate_train", "finetune", "seed"):
            raise UsageError(f"{name} is what the baseline was made with; gate, gate_train, finetune, seed can be set")
    directory = RunDirectory(run)
    path = directory.checkpoint("train")
    if not path.exists():
        raise UsageError(f"{directory.path} holds no baseline; make one with tinyprune train or tinyprune import")
    config, saved = directory.read_config().with_options(options), load_model(path, get_backend(backend))
    if not saved.metadata.get("finished"):
        raise UsageError(f"the baseline of {directory.path} is not finished; tinyprune train --resume goes on with it")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sizes["methods"] is None:
        sizes["methods"] = [name for name in COMPARED if name != "flap" or saved.model.config.biased_outputs]
        if "flap" not in sizes["methods"]:
            say("compare: flap is left out: its means go into biases, and this model has none")
    sizes["heal"] = [steps for steps in sizes["heal"] or [config.finetune.steps] if steps]
    sizes["heal_methods"] = sizes["heal_methods"] or sizes["methods"]
    text = text_of(saved, directory.path, corpus)
    name = saved.metadata.get("source", directory.path.name)
    return Comparison(name, saved.model, digest, text, config, backend, **sizes)


def run_comparison(comparison: Comparison, directory: str | Path) -> list[Record]:
    """Compute the cells that a directory lacks, then write its tables and pictures; returns the rows of results.csv.

    Raises what `grid.run_cells` raises.
    """
    store = Store(directory)

    def work(cell: CheckpointCell, _: None) -> Outcome:
        return Outcome(comparison.compute(cell, store))

    with announced(comparison.model.ops, "compare"):
        run_cells(comparison.cells, store, this_process, "compare", work)
    return write_results(comparison, store)


def write_results(comparison: Comparison, store: Store) -> list[Record]:
    """Write tables, pictures and README.md; returns the rows of results.csv."""
    rows = comparison.rows(store)
    tables = {"results": rows, "summary": summarise(rows)}
    config, text = comparison.config.to_dict(), comparison.text
    about: dict[str, Any] = {
        "study": "compare",
        "model": comparison.name,
        "model_sha256": comparison.digest,
        "config": {table: config[table] for table in ("seed", "model", "gate", "gate_train", "finetune")},
        "text": Path(text.name).name,
        "text_sha256": text.digest,
        "tokens": {name: getattr(comparison, name) for name in ("tokens", "score_tokens", "repair_tokens", "sample")},
        "machine": machine_of(comparison.backend),
    }
    caption = "Perplexity against heads removed: pruned, repaired, healed"
    drawn = [("compare", caption, plot_perplexity(tables["summary"]))]
    write_files(store.directory, about, tables, drawn, page(about, tables))
    return rows


def page(about: dict[str, Any], tables: dict[str, list[Record]]) -> list[str]:
    """Return the paragraphs of README.md; `about` is study.json."""
    config, tokens = about["config"], about["tokens"]
    gates, finetune, T = config["gate_train"], config["finetune"], config["model"]["T"]
    share = finetune.get("distill", 0)
    divergence = f", in which {share:.0%} of the loss is the divergence from the whole model" if share else ""
    return [
        f"# compare, {about['model']} on {about['text']}",
        f"Perplexity on the first {tokens['tokens']:,} tokens of the held-out test split after heads were removed from "
        "one trained model, mean over seeds and standard deviation (spread): just pruned (no repair, 0 steps), with "
        f"what stays fitted to {tokens['repair_tokens']:,} tokens by least squares (repair), and healed by steps of "
        f"{finetune['B']} × {T} tokens{divergence} (`whole`: the model with all heads, before and after as many). "
        f"Criteria read {tokens['score_tokens']:,} tokens of the validation split, leave-one-out {tokens['sample']:,}; "
        f"gates on frozen weights had {gates['steps']} steps of {gates['B']} × {T}. Written by "
        "`tinyprune compare`; settings are in `study.json`, a row for each model in `results.csv`.",
        markdown_table(tables["summary"]),
    ]
