"""Prune the baseline of one run by several methods, to several sizes: `tinyprune compare RUN`.

Heads, blocks of feed-forward units, or both are removed until a share of the parameters that are no embedding is left.
Each is a recipe of `method.prune`, whose steps are cells of their own, so that each can be measured:

    whole     the baseline as it is, measured; and healed, since training on the text would help it as well
    scores    what a criterion says of all parts, once for all sizes
    pruned    the parts chosen, on frozen weights, and the others removed
    repaired  the same, and what stays fitted to the whole model, see `method.repair`
    healed    the repaired model trained as the run's table `heal` says

All of them read the run's `texts`, criteria of its own the validation split, the others the training split.
The numbers come from the test split, and from another text if there is one, in `PIECES` of equal length, so that
differences from the whole model have an interval. `store` saves the record of each finished cell.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import OF_HEADS, OF_LAYERS, ChooseConfig, RunConfig, TrainConfig, as_version_02
from tinyprune.data import Text
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import NOT_IN_KEYS, Outcome, PlainCell, key_of, timed
from tinyprune.experiments.grid import run_cells, this_process
from tinyprune.experiments.intervals import mean_of_samples, scipy_stats
from tinyprune.experiments.methods import check_choices
from tinyprune.experiments.pictures import plot_ratios
from tinyprune.experiments.results import grouped, machine_of, mean_of, write_files
from tinyprune.experiments.store import Store
from tinyprune.io.progress import say
from tinyprune.io.tables import Record, markdown_table
from tinyprune.method.choose import open_best
from tinyprune.method.criteria import CRITERIA
from tinyprune.method.gates import budget, in_parts, open_parts
from tinyprune.method.masks import with_parts
from tinyprune.method.prune import choose, heal, repair
from tinyprune.method.recipe import Recipe, Watch
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.texts import MADE, Texts
from tinyprune.model.counting import count_parameters
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pretrained import gguf_source
from tinyprune.pretrained.blimp import blimp, read_pairs
from tinyprune.pretrained.gguf_writer import write_gguf
from tinyprune.pretrained.words import DISTANCES, QUESTION, ask, countries
from tinyprune.runs.changes import is_finished
from tinyprune.runs.directory import RunDirectory, load_model, sha256_of, text_of
from tinyprune.training.evaluation import evaluate
from tinyprune.training.warmup import announced

METHODS = ("gates", *CRITERIA)
SEEDED = ("gates", "random")  # the others have one result
# Leave-one-out reads the text once for each part: blocks are too many.
HEADS_ONLY = ("leave-one-out", *OF_HEADS)
KINDS = ("heads", "blocks", "both")  # of parts that may go
# "bytes" are those of a file of llama.cpp, if the source is one.
SIZES = ("heads", "blocks", "parameters", "non_embedding", "bytes")
CHAIN = ("scores", "pruned", "repaired", "healed")  # cells, each after those that it needs
PIECES = 20  # of a text
# Settings of a run that a comparison can change.
CHANGED = ("choose", "gate", "gate_train", "repair", "heal", "seed", "texts")
REVISION = 4  # with another number everything is computed again


@dataclass(frozen=True)
class CheckpointCell(PlainCell):
    """One cell, see above. `grid` and `store` use its key, to_dict, baseline and name."""

    what: str  # "whole", "scores", "pruned", "repaired" or "healed"
    method: str  # one of `METHODS`, or "whole"
    parts: str  # one of `KINDS`, or "all" of the whole model
    seed: int
    depends: dict[str, Any]  # what else the result depends on, plain values
    share: float | None = None  # of the parameters that are no embedding, which stays

    @property
    def place(self) -> dict[str, Any]:
        """Return what cells of one model have in common, as columns of a table."""
        names = ("method", "parts", "share", "seed")
        return {name: getattr(self, name) for name in names}

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the generator of a purpose, see `recipe.Generators`."""
        return np.random.default_rng([self.seed, ("scores", "gate", "finetune").index(purpose)])

    def __str__(self) -> str:
        share = "" if self.share is None else f", {self.share:.0%} stay"
        return f"{self.method}, {self.parts}, seed {self.seed}{share}: {self.what}"


@dataclass(frozen=True)
class Comparison:
    """The baseline and the settings of one comparison; it lists its cells, computes one, and makes tables of all."""

    name: str  # of the run
    config: RunConfig  # of the run, with what was changed for this comparison
    text: Text  # the run's
    model: Transformer  # the baseline
    digest: str  # sha256 of its checkpoint
    read: dict[str, NDArray]  # name → tokens that are read for the numbers
    methods: Sequence[str]
    parts: Sequence[str]
    shares: Sequence[float]
    seeds: int  # how many, for the methods in `SEEDED`
    pairs: Sequence[dict[str, str]] = ()  # minimal pairs that each model judges, see `blimp.read_pairs`
    prompt: str | None = None  # what each model answers, see `words.ask`; None: it is asked nothing
    source: Path | None = None  # the GGUF file that the baseline comes from
    # the last repaired model and the place of its cell
    repaired: list[tuple[dict, Transformer]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if len(set(self.shares)) < len(self.shares):
            raise UsageError(f"shares must be different, got {list(self.shares)}")
        check_choices(self.shares, 1000, self.methods, METHODS)
        if self.seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {self.seeds}")
        unknown = set(self.parts) - set(KINDS)
        if unknown:
            given = ", ".join(sorted(unknown))
            raise UsageError(f"parts must be among {', '.join(KINDS)}; got {given}")
        idle = [method for method in self.methods if method not in dict(self.tried)]
        if idle:
            given = ", ".join(self.parts)
            raise UsageError(f"parts must have {self.only[idle[0]]} for {idle[0]}, got {given}")
        if set(self.parts) != {"heads"} and not self.model.config.F:
            raise UsageError("parts must be heads, for this model has no feed-forward block")
        for name, tokens in self.read.items():
            if len(tokens) < 2 * PIECES:
                given = f"{len(tokens)} of {name}"
                raise UsageError(f"tokens must be at least {2 * PIECES}, got {given}")
        # refuses now what would be refused after hours
        for method, parts, share in itertools.product(self.methods, self.parts, self.shares):
            if (method, parts) in self.tried:
                how = self.choice(method, parts, share)
                budget(in_parts(self.model, how).config, how)
        if self.config.repair.tokens:
            self.texts.to_repair(self.config.repair.tokens, self.model.config.T)

    @cached_property
    def texts(self) -> Texts:
        """What the recipes read."""
        return Texts.of(self.config, self.text)

    def fresh_texts(self) -> Texts:
        """Return the texts at their beginning; what the whole model writes is written once."""
        self.texts.tokens(self.model)
        return dataclasses.replace(self.texts, read=None)

    @cached_property
    def cells(self) -> list[CheckpointCell]:
        """All cells, each after those whose records it reads."""
        config = self.config
        about = {"revision": REVISION, "model": self.digest, "backend": self.model.ops.name}
        read = {name: [len(tokens), int(tokens.sum())] for name, tokens in self.read.items()}
        if self.words:
            read |= {"words": [key_of(self.words)]}
        if self.pairs:
            read |= {"blimp": [key_of(self.pairs)]}
        gate = as_version_02(config)["gate"] | {"text": self.text.digest}
        if set(self.texts.names) - {"run", *MADE}:  # files, which can change
            gate["texts"] = [key_of(tokens.tolist()) for tokens in self.texts.tokens()]
        repair = {"repair": {"repair_type": gate.pop("repair_type", ""), "weights": "by stream"}}
        training = {"gate_train": settings(config.gate_train)}
        healing = {"healing": settings(config.heal)}
        cells = [CheckpointCell("whole", "whole", "all", config.seed, about | {"read": read})]
        if config.heal.steps:
            depends = about | {"read": read, "gate": gate} | healing
            cells.append(CheckpointCell("healed", "whole", "all", config.seed, depends))
        for method, parts in self.tried:
            trained = about | {"gate": gate | training if method == "gates" else gate}
            seeds = self.seeds if method in SEEDED else 1
            for seed in range(config.seed, config.seed + seeds):
                if method != "gates":
                    cells.append(CheckpointCell("scores", method, parts, seed, trained))
                for share in self.shares:
                    depends = trained | {"read": read}
                    own = CheckpointCell("pruned", method, parts, seed, depends, share)
                    cells.append(own)
                    depends = depends | repair
                    if config.repair.tokens:
                        cells.append(dataclasses.replace(own, what="repaired", depends=depends))
                    if config.heal.steps:
                        depends = depends | healing
                        cells.append(dataclasses.replace(own, what="healed", depends=depends))
        return cells

    @property
    def models(self) -> list[CheckpointCell]:
        """The cells that measure a model."""
        return [cell for cell in self.cells if cell.what != "scores"]

    @cached_property
    def tried(self) -> list[tuple[str, str]]:
        """Which methods choose among which parts."""
        pairs = itertools.product(self.methods, self.parts)
        return [(method, parts) for method, parts in pairs if self.only.get(method, parts) == parts]

    @property
    def only(self) -> dict[str, str]:
        """The one of `KINDS` that a method can choose among, for those that cannot choose among each."""
        layer = "both" if self.model.config.F else "heads"
        return dict.fromkeys(HEADS_ONLY, "heads") | dict.fromkeys(OF_LAYERS, layer)

    @cached_property
    def words(self) -> dict[str, Any]:
        """What every model is asked, see `words.ask`; empty if nothing."""
        if self.prompt is None:
            return {}
        return {"facts": countries(self.text.tokenizer), "prompt": self.prompt, "distances": DISTANCES}

    def choice(self, method: str, parts: str, share: float | None) -> ChooseConfig:
        """Return the run's choice, for this method, these parts and this share of the parameters."""
        given = self.config.choose
        units = 0 if parts == "heads" else given.units or 32
        target = {"target_heads": None, "target_share": share, "price": "parameters"}
        return dataclasses.replace(given, by=method, units=units, heads=parts != "blocks", **target)

    def recipe(self, cell: CheckpointCell) -> Recipe:
        """Return the recipe of a cell: the run's, on frozen weights."""
        share = 1.0 if cell.share is None else cell.share
        whole = Recipe.of(self.config)
        gate = dataclasses.replace(whole.gate, frozen=True)
        how = self.choice(cell.method, cell.parts, share)
        return dataclasses.replace(whole, choose=how, gate=gate)

    def compute(self, cell: CheckpointCell, store: Store) -> dict[str, Any]:
        """Return a cell's record: scores, or a model's measurements and which parts it has kept."""
        if cell.what == "scores":
            parted = in_parts(self.model, self.recipe(cell).choose)
            tokens = self.fresh_texts().to_score(self.config.choose.tokens, self.model)
            start = time.perf_counter()
            scores = CRITERIA[cell.method](parted, tokens, cell.rng("scores"))
            return {
                "made_in": round(time.perf_counter() - start, 2),
                "scores": [[float(f"{x:.6g}") for x in own] for own in scores],
            }
        model, kept, start = self.model, {}, time.perf_counter()
        if cell.method != "whole":
            gated = self.chosen(cell, store)
            kept = {"kept": [np.flatnonzero(own).tolist() for own in open_parts(gated)]}
            model = remove_closed_heads(gated)
            if cell.what != "pruned" and self.config.repair.tokens:
                model = self.repaired_model(cell, model)
        if cell.what == "healed":
            start = time.perf_counter()  # the repair is another cell's
            own = {name: x.copy() for name, x in model.params.items()}
            model = dataclasses.replace(model, params=own)
            config, texts = self.config.heal, self.fresh_texts()
            heal(model, self.model, "finetune", config, texts, cell.rng, Watch())
        return {"made_in": round(time.perf_counter() - start, 2)} | self.measure(model) | kept

    def repaired_model(self, cell: CheckpointCell, small: Transformer) -> Transformer:
        """Return the small model repaired; a cell that heals it has it from the cell before."""
        for place, model in self.repaired:
            if place == cell.place:
                return model
        self.repaired.clear()  # before another one, which is as large
        model = repair(self.model, small, self.config.repair, self.fresh_texts())
        self.repaired.append((cell.place, model))
        return model

    def chosen(self, cell: CheckpointCell, store: Store) -> Transformer:
        """Return the baseline with gates that are open for what stays; earlier cells may have decided."""
        recipe = self.recipe(cell)
        if cell.what == "pruned" and cell.method == "gates":
            return choose(self.model, recipe, self.fresh_texts(), cell.rng, Watch())
        parted = in_parts(self.model, recipe.choose)
        if cell.what == "pruned":
            scores = self.earlier("scores", dataclasses.replace(cell, share=None), store)["scores"]
            return open_best(parted, recipe, [np.array(own) for own in scores])
        kept = self.earlier("pruned", cell, store)["kept"]
        counts = Parts(parted.config).counts
        return with_parts(parted, [np.isin(range(n), ids) for n, ids in zip(counts, kept, strict=True)])

    def earlier(self, what: str, cell: CheckpointCell, store: Store) -> dict[str, Any]:
        """Return the record of the cell `what` in the same place."""
        found = (c for c in self.cells if (c.what, c.place) == (what, cell.place))
        return store.records[next(found).key]

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Return the loss on each piece of each text, in nats for each token, and the size."""
        pieces = {name: np.array_split(tokens, PIECES) for name, tokens in self.read.items()}
        nats = {}
        for name, own in pieces.items():
            losses = [evaluate(model, piece, 0).nats_per_token for piece in own]
            nats[name] = [min(round(x, 6), 1e300) for x in losses]
        config, total = model.config, count_parameters(model.config)
        embedding = total - Parts(config).prices("parameters")[1]
        record = {"nats": nats, "parameters": total, "non_embedding": total - round(embedding)}
        record |= {"heads": sum(config.heads), "blocks": sum(config.blocks)}
        if self.source:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.gguf")
                write_gguf(path, model, self.text.tokenizer, self.source)
                record["bytes"] = path.stat().st_size
        if self.words:
            record |= ask(model, self.text.tokenizer, **self.words)
        if self.pairs:
            right = blimp(model, self.text.tokenizer, self.pairs)
            record["blimp"] = np.packbits(right).tobytes().hex()  # a bit for each pair
        return record

    def rows(self, store: Store) -> list[Record]:
        """Return a row for each model and text, the baseline's first.

        `times` is the perplexity as a multiple of the whole model's; its 95 % interval (low, high) comes from the
        differences of the losses on the pieces of the text. `of_healed` is the same multiple for a healed model of the
        whole model healed as long. `minutes` is what the model took: scores, choice, repair and healing together.
        """
        rows, whole, controls = [], store.records[self.cells[0].key], [c for c in self.cells[:2] if c.what == "healed"]
        for cell in self.models:
            record, minutes = store.records[cell.key], self.minutes(cell, store)
            for text, nats in record["nats"].items():
                row = cell.place | {"model": cell.what, "text": text}
                row |= {"perplexity": exp(np.mean(nats))} | ratio(np.subtract(nats, whole["nats"][text]))
                if controls:
                    control = store.records[controls[0].key]["nats"][text]
                    row["of_healed"] = exp(np.mean(np.subtract(nats, control))) if cell.what == "healed" else None
                row |= {name: record[name] for name in SIZES if name in record}
                row["minutes"] = minutes
                if self.pairs:
                    row["blimp"] = int(record["blimp"], 16).bit_count() / len(self.pairs)
                rows.append(row | record.get("words", {}))
        return rows

    def minutes(self, cell: CheckpointCell, store: Store) -> float | None:
        """Return how many minutes it took to make a cell's model, with the cells before it; None if one is older."""
        places = (cell.place, dataclasses.replace(cell, share=None).place)
        before = CHAIN[: CHAIN.index(cell.what) + 1] if cell.what in CHAIN else ()
        chain = [c for c in self.cells if c.what in before and c.place in places]
        seconds = [store.records[c.key].get("made_in") for c in chain]
        return None if None in seconds else round(sum(seconds) / 60, 2)


def summarise(rows: Sequence[Record]) -> list[Record]:
    """Return means over seeds, of perplexities and ratios geometric ones.

    The interval of a method with several seeds is over seeds; that of one model is over pieces of its text.
    """
    names = ("method", "parts", "share", "model", "text")
    sizes = (*SIZES, "of_healed", "minutes", "blimp", "capitals", "induction", *(f"induction_{n}" for n in DISTANCES))
    summary = []
    for group in grouped(rows, *names).values():
        row = {name: group[0][name] for name in names}
        row["perplexity"] = statistics.geometric_mean(r["perplexity"] for r in group)
        if len(group) > 1:
            row |= ratio(np.log([r["times"] for r in group]))
        else:
            row |= {name: group[0][name] for name in ("times", "low", "high")}
        row |= {name: mean_of(group, name) for name in sizes if name in group[0]}
        summary.append(row | {"seeds": len(group)})
    return summary


def ratio(logs: NDArray) -> Record:
    """Return a ratio, `times`, and its 95 % interval (low, high) from n samples (n,) of its logarithm."""
    mean, _, half = mean_of_samples(logs)
    return {"times": exp(mean), "low": exp(mean - half), "high": exp(mean + half)}


def exp(x: float) -> float:
    """Return e to the power of x, or of 700 if x is larger: a number that a file can hold."""
    return math.exp(min(x, 700))


def settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a stage that its result depends on."""
    return {name: value for name, value in config.to_dict().items() if name not in NOT_IN_KEYS}


def open_comparison(
    path: str | Path,
    ops: Engine,
    options: dict[str, Any],
    corpus: str | None,
    other: str | None,
    tokens: int,
    task: str | None = None,
    **of: Any,
) -> Comparison:
    """Read the baseline of a run, with some `options` of its recipe and the seed changed, and texts.

    `corpus` says where the run's text lies now, or another text; `other` names texts that nothing is fitted to, with
    commas between them. `tokens` of each are read for the numbers. `task` is a file of minimal pairs. `of`: the other
    fields of `Comparison`.

    Raises:
        UsageError: if there is no such run, its baseline is unfinished, or a value is not allowed.
        CheckpointError: if the baseline cannot be read.
        MissingExtraError: if SciPy is not installed.
    """
    place = RunDirectory(path)
    scipy_stats()  # what is missing is said now, not when everything is computed
    config = place.read_config().with_options(options)
    for name in options:
        if name.partition(".")[0] not in CHANGED:
            changed = ", ".join(CHANGED)
            raise UsageError(f"{name} is what the baseline was made with; {changed} can be set")
    checkpoint = place.checkpoint("train")
    saved = load_model(checkpoint, ops, mapped=True)
    if not is_finished(saved.metadata, "train", config):
        command = f"tinyprune train {path} --resume"
        raise UsageError(f"stage train of {path} is not finished; go on with: {command}")
    text = text_of(saved, place.path, corpus)
    read = {"run": text.test[:tokens]}
    others = other.split(",") if other else []
    names = ["other"] if len(others) == 1 else [Path(name).stem for name in others]
    if len({"run", *names}) <= len(names):
        raise UsageError(f"other must be texts with different names, and none called run; got {other}")
    # nothing is fitted to them: of a text without splits the second half is read
    most = dataclasses.replace(saved, data=dataclasses.replace(saved.data, valid_fraction=0.05, test_fraction=0.5))
    for name, own in zip(names, others, strict=True):
        read[name] = text_of(most, place.path, own).test[:tokens]
    of |= {
        "pairs": read_pairs(task) if task else (),
        "digest": sha256_of(checkpoint),
        "source": gguf_source(saved.metadata),
    }
    return Comparison(place.path.name, config, text, saved.model, read=read, **of)


def run_comparison(comparison: Comparison, directory: str | Path) -> list[Record]:
    """Compute the cells that a directory lacks, then write its tables and pictures; returns the rows of results.csv.

    Raises what `grid.run_cells` raises.
    """
    store = Store(directory)

    def work(cell: CheckpointCell, _: None) -> Outcome:
        with timed() as times:
            record = comparison.compute(cell, store)
        return Outcome(record | times)

    if len(comparison.tried) < len(comparison.methods) * len(comparison.parts):
        alone = [f"{x} takes --parts {kind} alone" for x, kind in comparison.only.items() if x in comparison.methods]
        say(f"compare: {', '.join(alone)}")
    with announced(comparison.model.ops, "compare"):
        run_cells(comparison.cells, store, this_process, "compare", work)
    rows = comparison.rows(store)
    tables = {"results": rows, "summary": summarise(rows)}
    text = comparison.text
    about = {
        "study": "compare",
        "model_sha256": comparison.digest,
        "config": comparison.config.to_dict(),
        "text": Path(text.name).name,
        "text_sha256": text.digest,
        "tokens": {name: len(tokens) for name, tokens in comparison.read.items()},
        "prompt": comparison.prompt,
        "machine": machine_of(comparison.model.ops.name),
    }
    caption = "Perplexity as a multiple of the whole model's"
    drawn = [("compare", caption, plot_ratios(tables["summary"]))]
    paragraphs = page(comparison, store, tables["summary"])
    write_files(store.directory, about, tables, drawn, paragraphs)
    return rows


def page(comparison: Comparison, store: Store, summary: Sequence[Record]) -> list[str]:
    """Return the paragraphs of README.md."""
    config, heal = comparison.config, comparison.config.heal
    paragraphs = [
        f"# compare, {comparison.name} on {Path(comparison.text.name).name}",
        "Perplexity, as a multiple of the whole model's, when parts are removed until a share of the "
        "parameters that are no embedding is left: *pruned*; *repaired*, fitted to "
        f"{config.repair.tokens:,} tokens, or all that there are; *healed* by {heal.steps} steps of "
        f"{heal.B} × {comparison.model.config.T} tokens. Geometric means over seeds; 95 % intervals over seeds, "
        f"or over {PIECES} pieces of the text where there is one. *bytes*: of the file that `tinyprune export` writes. "
        "*Of healed*: of the perplexity of the whole model, healed as long. *minutes*: of scores, choice, repair and "
        "healing. *blimp*: the share of minimal pairs of which the right sentence is likelier. "
        "By `tinyprune compare`; settings: `study.json`.",
        markdown_table(summary),
    ]
    if comparison.words:
        answers = []
        for cell in comparison.models:
            answer = " ".join(store.records[cell.key]["answer"].split())
            answers.append({"model": str(cell), "answer": answer.replace("|", "\\|")})
        paragraphs.append(
            f"*Capitals*: how many of {len(comparison.words['facts'])} are likeliest after "
            f"“{QUESTION.format('…')}”; *induction*: how many random tokens are, when they come again after "
            "64 others, or as many as is said. "
            f"What each model answers to “{comparison.prompt}”:\n\n{markdown_table(answers)}"
        )
    return paragraphs
