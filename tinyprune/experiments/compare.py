"""Prune the baseline of one run by several methods, to several sizes: `tinyprune compare RUN`.

Heads, blocks of feed-forward units, or both are removed until a share of the parameters that are no embedding is left.
The work is a list of cells:

    whole     the baseline as it is, measured; and healed, since training on the text would help it as well
    scores    what a criterion says of all parts, once for all sizes
    pruned    the parts chosen, on frozen weights, and the others removed
    repaired  the same, and what stays fitted to the whole model, see `pruning.sequential`
    healed    the repaired model trained as the run's table `finetune` says

All of them read the texts of `gate.repair_corpus`, criteria the run's validation split, the others its training split.
The numbers come from the test split, and from another text if there is one, in `BLOCKS` pieces of equal length, so that
differences from the whole model have an interval. `store` saves the record of each finished cell.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import RETIRED, GateConfig, TrainConfig
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import NOT_IN_KEYS, Outcome, healing_objective, key_of
from tinyprune.experiments.experiment import check_choices
from tinyprune.experiments.grid import run_cells, this_process
from tinyprune.experiments.intervals import CONFIDENCE, student
from tinyprune.experiments.lost import QUESTION, ask, countries
from tinyprune.experiments.pictures import plot_ratios
from tinyprune.experiments.results import grouped, machine_of, mean_of, write_files
from tinyprune.experiments.store import Store
from tinyprune.model.counting import count_parameters, part_prices
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import gguf_source
from tinyprune.pretrained.gguf import rounded
from tinyprune.pretrained.gguf_writer import write_gguf
from tinyprune.progress import say
from tinyprune.pruning.gates import hit_target, open_heads, with_new_gates
from tinyprune.pruning.importance import ALL_CRITERIA, with_heads, with_scored_gates
from tinyprune.pruning.sequential import refitted
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.runs.directory import RunDirectory, sha256_of, text_of
from tinyprune.runs.run import Run
from tinyprune.tables import Record, markdown_table
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import Objective, training_steps
from tinyprune.warmup import announced

METHODS = ("gates", *ALL_CRITERIA)
SEEDED = ("gates", "random")  # the others have one result
HEADS_ONLY = ("leave-one-out",)  # it reads the text once for each part, of which blocks are too many
PARTS = ("heads", "blocks", "both")
SIZES = ("heads", "blocks", "parameters", "non_embedding", "bytes")  # of a file of llama.cpp, if the source is one
BLOCKS = 20  # pieces of a text
REVISION = 4  # with another number everything is computed again


@dataclass(frozen=True)
class CheckpointCell:
    """One cell, see above. `grid` and `store` use its key, to_dict, baseline and name."""

    what: str  # "whole", "scores", "pruned", "repaired" or "healed"
    method: str  # one of `METHODS`, or "whole"
    parts: str  # one of `PARTS`, or "all" of the whole model
    seed: int
    depends: dict[str, Any]  # what else the result depends on, plain values
    share: float | None = None  # of the parameters that are no embedding, which stays
    baseline = None  # the checkpoint is at hand: no cell needs another's weights

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: all that the result depends on."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A hash of `to_dict()`."""
        return key_of(self.to_dict())

    def __str__(self) -> str:
        share = "" if self.share is None else f", {self.share:.0%} stay"
        return f"{self.method}, {self.parts}, seed {self.seed}{share}: {self.what}"


@dataclass(frozen=True)
class Comparison:
    """The baseline and the settings of one comparison; it lists its cells, computes one, and makes tables of all."""

    run: Run
    model: Transformer  # the baseline
    digest: str  # sha256 of its checkpoint
    texts: dict[str, NDArray]  # name → tokens that are read for the numbers
    methods: Sequence[str]
    parts: Sequence[str]
    shares: Sequence[float]
    seeds: int  # how many, for the methods in `SEEDED`
    prompt: str | None = None  # what each model answers, beside the questions of `lost`; None: it is asked nothing
    source: Path | None = None  # the GGUF file that the baseline comes from
    repaired: dict[str, Transformer] = dataclasses.field(default_factory=dict)  # the last, by its cell's name

    def __post_init__(self) -> None:
        if len(set(self.shares)) < len(self.shares):
            raise UsageError(f"shares must be different, got {list(self.shares)}")
        check_choices(self.shares, 1000, self.methods, METHODS)
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}")
        if unknown := set(self.parts) - set(PARTS):
            raise UsageError(f"parts must be among {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
        if not self.tried:
            raise UsageError(f"parts must have heads for {', '.join(HEADS_ONLY)}, got {', '.join(self.parts)}")
        if set(self.parts) != {"heads"} and not self.model.config.F:
            raise UsageError("parts must be heads, for this model has no feed-forward block")
        for name, tokens in self.texts.items():
            if len(tokens) < 2 * BLOCKS:
                raise UsageError(f"tokens must be at least {2 * BLOCKS}, got {len(tokens)} of {name}")
        for parts, share in itertools.product(self.parts, self.shares):
            with_new_gates(self.model, self.gate(parts, share), 0)  # refuses now what it would refuse after hours
        if self.run.config.gate.repair_tokens:
            self.run.repair_text()  # this, too

    @cached_property
    def cells(self) -> list[CheckpointCell]:
        """All cells, each after those whose records it reads."""
        config = self.run.config
        about = {"revision": REVISION, "model": self.digest, "backend": self.model.ops.name}
        read = {name: [len(tokens), int(tokens.sum())] for name, tokens in self.texts.items()}
        read |= {"words": [key_of(self.words)]} if self.words else {}
        gate = RETIRED["gate"] | config.gate.to_dict() | {"text": self.run.text.digest}
        if set(self.run.corpora) - {"run", "self"}:  # files, which can change
            gate["texts"] = [key_of(tokens.tolist()) for tokens in self.run.mixed(None)]
        repair = {"repair": {"repair_type": gate.pop("repair_type", ""), "weights": "by stream"}}
        training, healing = {"gate_train": settings(config.gate_train)}, {"healing": settings(config.finetune)}
        cells = [CheckpointCell("whole", "whole", "all", config.seed, about | {"read": read})]
        if config.finetune.steps:
            depends = about | {"read": read, "gate": gate} | healing
            cells.append(CheckpointCell("healed", "whole", "all", config.seed, depends))
        for method, parts in self.tried:
            trained = about | {"gate": gate | (training if method == "gates" else {})}
            for seed in range(config.seed, config.seed + (self.seeds if method in SEEDED else 1)):
                if method != "gates":
                    cells.append(CheckpointCell("scores", method, parts, seed, trained))
                for share in self.shares:
                    cells.append(own := CheckpointCell("pruned", method, parts, seed, trained | {"read": read}, share))
                    if config.gate.repair_tokens:
                        cells.append(dataclasses.replace(own, what="repaired", depends=own.depends | repair))
                    if config.finetune.steps:
                        cells.append(dataclasses.replace(own, what="healed", depends=own.depends | repair | healing))
        return cells

    @cached_property
    def tried(self) -> list[tuple[str, str]]:
        """Which methods choose among which parts."""
        pairs = itertools.product(self.methods, self.parts)
        return [(method, parts) for method, parts in pairs if parts == "heads" or method not in HEADS_ONLY]

    @cached_property
    def words(self) -> dict[str, Any]:
        """What every model is asked, see `lost.ask`; empty if nothing."""
        return {} if self.prompt is None else {"facts": countries(self.run.text.tokenizer), "prompt": self.prompt}

    def gate(self, parts: str, share: float | None) -> GateConfig:
        """Return the run's gates, on frozen weights, for these parts and this share of the parameters."""
        gate = dataclasses.replace(self.run.config.gate, frozen=True, target_heads=None, target_share=share)
        units = 0 if parts == "heads" else gate.units or 32
        return dataclasses.replace(gate, units=units, heads=parts != "blocks", price="parameters", criterion="")

    def compute(self, cell: CheckpointCell, store: Store) -> dict[str, Any]:
        """Return a cell's record: scores, or a model's measurements and which parts it has kept."""
        config, rng = self.run.config, np.random.default_rng([cell.seed, 0])
        if cell.what == "scores":
            gated, _ = with_new_gates(self.model, self.gate(cell.parts, 1.0), 0)
            parted = dataclasses.replace(self.model, config=gated.config)
            tokens = self.run.criterion_text(self.model)
            return {"scores": [[float(f"{x:.6g}") for x in p] for p in ALL_CRITERIA[cell.method](parted, tokens, rng)]}
        model, kept = self.model, {}
        if cell.method != "whole":
            gated = self.chosen(cell, store)
            kept = {"kept": [np.flatnonzero(part).tolist() for part in open_heads(gated)]}
            model = remove_closed_heads(gated)
            if cell.what != "pruned" and config.gate.repair_tokens:
                stored = partial(rounded, kind=config.gate.repair_type)
                name = str(dataclasses.replace(cell, what="repaired"))
                model = self.repaired.get(name) or refitted(self.model, model, self.run.repair_text(self.model), stored)
                self.repaired.clear()
                self.repaired[name] = model
        if cell.what == "healed":
            model = dataclasses.replace(model, params={name: x.copy() for name, x in model.params.items()})
            self.train("finetune", model, healing_objective(self.model, config.finetune.distill), [cell.seed, 2])
        return self.measure(model) | kept

    def chosen(self, cell: CheckpointCell, store: Store) -> Transformer:
        """Return the baseline with gates that are open for what stays; earlier cells may have decided."""
        gate = self.gate(cell.parts, cell.share)
        if cell.what != "pruned":
            kept = self.earlier("pruned", cell, store)["kept"]
            gated, _ = with_new_gates(self.model, gate, 0)
            parts = gated.config.parts
            mask = [np.isin(range(count), ids) for count, ids in zip(parts, kept, strict=True)]
            return with_heads(dataclasses.replace(self.model, config=gated.config), mask)
        if cell.method != "gates":
            scores = [np.array(x) for x in self.earlier("scores", cell, store)["scores"]]
            return with_scored_gates(self.model, gate, lambda model: scores)
        gated, objective = with_new_gates(self.model, gate, self.run.config.gate_train.steps // 2)
        self.train("gate", gated, objective, [cell.seed, 1])
        hit_target(gated)
        return gated

    def earlier(self, what: str, cell: CheckpointCell, store: Store) -> dict[str, Any]:
        """Return the record of the cell `what` of the same method, parts and seed (and share, unless of scores)."""
        wanted = (what, cell.method, cell.parts, cell.seed, None if what == "scores" else cell.share)
        return next(store.records[c.key] for c in self.cells if (c.what, c.method, c.parts, c.seed, c.share) == wanted)

    def train(self, stage: str, model: Transformer, objective: Objective, seed: list[int]) -> None:
        """Train a model in place, from the beginning of the text."""
        segments = self.run.segments(stage, model.config, whole=self.model)
        for _ in training_steps(model, segments, self.run.training(stage), objective, np.random.default_rng(seed)):
            pass

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Return the loss on each piece of each text, in nats for each token, and the size."""
        pieces = {name: np.array_split(tokens, BLOCKS) for name, tokens in self.texts.items()}
        nats = {name: [evaluate(model, p, 0).nats_per_token for p in own] for name, own in pieces.items()}
        config = model.config
        fixed = count_parameters(config) - part_prices(config, "parameters")[1]  # the embedding
        sizes = {"parameters": count_parameters(config), "non_embedding": count_parameters(config) - round(fixed)}
        sizes |= {"heads": sum(config.heads), "blocks": sum(config.blocks)}
        if self.source:
            with tempfile.TemporaryDirectory() as folder:
                write_gguf(path := Path(folder, "model.gguf"), model, self.run.text.tokenizer, self.source)
                sizes["bytes"] = path.stat().st_size
        asked = ask(model, self.run.text.tokenizer, **self.words) if self.words else {}
        return {"nats": {name: [min(round(x, 6), 1e300) for x in own] for name, own in nats.items()}} | sizes | asked

    def rows(self, store: Store) -> list[Record]:
        """Return a row for each model and text, the baseline's first.

        `times` is the perplexity as a multiple of the whole model's; its 95 % interval (low, high) comes from the
        differences of the losses on the pieces of the text.
        """
        rows, whole = [], store.records[self.cells[0].key]
        for cell, record in ((c, store.records[c.key]) for c in self.cells if c.what != "scores"):
            for text, nats in record["nats"].items():
                more = np.subtract(nats, whole["nats"][text])
                half = float(student().ppf(CONFIDENCE, BLOCKS - 1)) * statistics.stdev(more) / math.sqrt(BLOCKS)
                mean = float(more.mean())
                ratios = {"times": mean, "low": mean - half, "high": mean + half}
                rows.append(
                    {"method": cell.method, "parts": cell.parts, "share": cell.share, "seed": cell.seed}
                    | {"model": cell.what, "text": text, "perplexity": math.exp(min(np.mean(nats), 700))}
                    | {name: math.exp(min(x, 700)) for name, x in ratios.items()}
                    | {name: record[name] for name in SIZES if name in record}
                    | record.get("words", {})
                )
        return rows


def summarise(rows: Sequence[Record]) -> list[Record]:
    """Return means over seeds; intervals of one seed's model stay as they are, others are means of intervals."""
    names = ("method", "parts", "share", "model", "text")
    means = ("perplexity", "times", "low", "high", *SIZES, "capitals", "induction")
    return [
        {name: group[0][name] for name in names}
        | {name: mean_of(group, name) for name in means if name in group[0]}
        | {"seeds": len(group)}
        for group in grouped(rows, *names).values()
    ]


def settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a stage that its result depends on."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_IN_KEYS}


def open_comparison(
    path: str | Path, ops: Any, options: dict[str, Any], corpus: str | None, other: str | None, tokens: int, **of: Any
) -> Comparison:
    """Read the baseline of a run, with some `options` of gate, gate_train, finetune and the seed changed, and texts.

    `corpus` says where the run's text lies now, or another text; `other` is a text that nothing is fitted to. `tokens`
    of each are read for the numbers. `of`: the other fields of `Comparison`.

    Raises:
        UsageError: if there is no such run, its baseline is unfinished, or a value is not allowed.
        CheckpointError: if the baseline cannot be read.
        MissingExtraError: if SciPy is not installed.
    """
    for name in options:
        if name.partition(".")[0] not in ("gate", "gate_train", "finetune", "seed"):
            raise UsageError(f"{name} is what the baseline was made with; gate, gate_train, finetune, seed can be set")
    place = RunDirectory(path)
    student()  # what is missing is said now, not when everything is computed
    run = Run(place, place.read_config().with_options(options), ops, "")
    saved = run.load("train")
    run.text = text_of(saved, place.path, corpus)
    texts = {"run": run.text.test[:tokens]}
    if other:  # nothing is fitted to it: of a text without splits the second half is read
        most = dataclasses.replace(saved, data=dataclasses.replace(saved.data, valid_fraction=0.05, test_fraction=0.5))
        texts["other"] = text_of(most, place.path, other).test[:tokens]
    of["source"] = gguf_source(saved.metadata)
    return Comparison(run, saved.model, sha256_of(place.checkpoint("train")), texts, **of)


def run_comparison(comparison: Comparison, directory: str | Path) -> list[Record]:
    """Compute the cells that a directory lacks, then write its tables and pictures; returns the rows of results.csv.

    Raises what `grid.run_cells` raises.
    """
    store = Store(directory)

    def work(cell: CheckpointCell, _: None) -> Outcome:
        return Outcome(comparison.compute(cell, store))

    if len(comparison.tried) < len(comparison.methods) * len(comparison.parts):
        say(f"compare: {', '.join(HEADS_ONLY)} chooses among heads alone")
    with announced(comparison.model.ops, "compare"):
        run_cells(comparison.cells, store, this_process, "compare", work)
    rows = comparison.rows(store)
    tables = {"results": rows, "summary": summarise(rows)}
    config, text = comparison.run.config, comparison.run.text
    heal = config.finetune
    about: dict[str, Any] = {"study": "compare", "model_sha256": comparison.digest, "config": config.to_dict()}
    about |= {"text": Path(text.name).name, "text_sha256": text.digest}
    about |= {"tokens": {name: len(tokens) for name, tokens in comparison.texts.items()}}
    about |= {"prompt": comparison.prompt, "machine": machine_of(comparison.model.ops.name)}
    drawn = [("compare", "Perplexity as a multiple of the whole model's", plot_ratios(tables["summary"]))]
    page = [
        f"# compare, {comparison.run.directory.path.name} on {about['text']}",
        "Perplexity, as a multiple of the whole model's, when parts are removed until a share of the parameters that "
        f"are no embedding is left: *pruned*; *repaired*, fitted to {config.gate.repair_tokens:,} tokens, or all that "
        f"there are; *healed* by {heal.steps} steps of {heal.B} × {comparison.model.config.T} tokens. Means over "
        f"seeds; 95 % intervals over {BLOCKS} pieces of the text. *bytes*: of the file that "
        "`tinyprune export` writes. By `tinyprune compare`; settings: `study.json`.",
        markdown_table(tables["summary"]),
    ]
    if comparison.words:
        asked = [(str(c), store.records[c.key]["answer"]) for c in comparison.cells if c.what != "scores"]
        answers = [{"model": name, "answer": " ".join(x.split()).replace("|", "\\|")} for name, x in asked]
        page.append(
            f"*Capitals*: how many of {len(comparison.words['facts'])} are likeliest after “{QUESTION.format('…')}”; "
            "*induction*: how many random tokens are, when they come again. What each model answers to "
            f"“{comparison.prompt}”:\n\n{markdown_table(answers)}"
        )
    write_files(store.directory, about, tables, drawn, page)
    return rows
