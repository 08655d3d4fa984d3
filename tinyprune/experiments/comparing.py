"""Prune the baseline of one run by every method, to several numbers of heads: `tinyprune compare RUN`.

    roles     what each head of the baseline mostly attends to
    scores    what a criterion says of all heads, once for all numbers of heads
    pruned    heads chosen and removed, what stays repaired if that is part of the method
    repaired  the same heads, and what stays fitted by least squares, see `pruning.repair`
    healed    the pruned model trained as the run's table `finetune` says, every one for as many steps; and the baseline
              trained alike, since training on the text would help it as well

Criteria read the validation split, repairs and training the training split; the test split is read for the reported
numbers alone. The model may be large: beside the baseline there is one other in memory, and steps are computed one
after the other by all threads. What is finished is kept, see `store`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig, RunConfig, TrainConfig
from tinyprune.data import Segments, Text, load_text
from tinyprune.errors import TinypruneError, UsageError
from tinyprune.experiments.cells import Outcome, key_of
from tinyprune.experiments.plan import check_sizes
from tinyprune.experiments.store import Store
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.progress import duration, progress_bar, say
from tinyprune.pruning.gates import hit_target, open_heads, with_new_gates
from tinyprune.pruning.importance import CRITERIA, keep_best, with_heads
from tinyprune.pruning.importance.blocks import Block, read_blocks
from tinyprune.pruning.importance.least_squares import search
from tinyprune.pruning.importance.michel import michel_global
from tinyprune.pruning.repair import repaired_from
from tinyprune.pruning.roles import head_roles
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.report import milliseconds_per_1k_tokens
from tinyprune.runs.directory import RunDirectory, load_model
from tinyprune.tables import Record
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import LanguageModelling, Objective, Training, train_step
from tinyprune.warmup import announced, median_seconds

NAMES = ("michel", "output-difference", "magnitude", "random", "leave-one-out")
SCORES = {"michel-global": michel_global, **{name: CRITERIA[name] for name in NAMES}, "flap": CRITERIA["fluctuation"]}
METHODS = ("gates", *SCORES, "least-squares")  # in the order in which they are computed
REPAIRS = {"flap": "mean", "least-squares": "least-squares"}
SEEDED = ("gates", "random")  # the others have one result
ROLE_TOKENS = 2048  # of the validation split, at most
REVISION = 1  # with another number everything is computed again


@dataclass(frozen=True)
class Step:
    """One model, the scores of one criterion, or the roles of the baseline's heads."""

    what: str  # "whole", "roles", "scores", "pruned", "repaired" or "healed"
    method: str
    seed: int
    heads: int | None  # how many stay in all layers together; None for all of them
    steps: int  # of healing
    depends: dict[str, Any]  # what else the result depends on, plain values

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: all that the result depends on."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A hash of `to_dict()`."""
        return key_of(self.to_dict())

    def __str__(self) -> str:
        if self.heads is None:
            named = {"whole": "whole model", "roles": "roles", "healed": f"whole model, trained for {self.steps} steps"}
            return named.get(self.what, f"{self.method}, scores")
        if self.what == "repaired":
            return f"{self.method}, {self.heads} heads, seed {self.seed}, repaired"
        healed = f", healed for {self.steps} steps" if self.steps else ""
        return f"{self.method}, {self.heads} heads, seed {self.seed}{healed}"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and with what it is computed."""

    name: str  # of the model
    model: Transformer  # the baseline, with all its heads
    digest: str  # sha256 of its checkpoint
    text: Text
    config: RunConfig  # of which gate, gate_train, finetune and the first seed are used
    backend: str
    methods: Sequence[str]
    shares: Sequence[float]  # of the heads, that are kept
    seeds: int  # how many, of the methods that have random numbers
    tokens: int  # of the test split
    score_tokens: int  # of the validation split that criteria read
    repair_tokens: int  # of the training split that repairs read
    sample: int  # of the validation split that leave-one-out reads, once for each head
    heal: Sequence[int]  # numbers of steps
    heal_methods: Sequence[str]  # which are repaired and healed

    def __post_init__(self) -> None:
        T = self.model.config.T
        check_sizes(self.shares, self.total, self.methods, METHODS)
        lows = {"seeds": 1, "tokens": 2} | dict.fromkeys(("score_tokens", "repair_tokens", "sample"), T + 1)
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if any(steps < 1 for steps in self.heal) or len(set(self.heal)) < len(self.heal):
            raise UsageError(f"heal must be different numbers of steps, or 0 for none; got {list(self.heal)}")
        if unknown := set(self.heal_methods) - set(self.methods):
            raise UsageError(f"heal-methods must be among {', '.join(self.methods)}; got {', '.join(sorted(unknown))}")
        if "flap" in self.methods and self.model.config.bias == "none":
            raise UsageError("methods must be without flap: its means go into biases, and this model has none")

    @property
    def total(self) -> int:
        """Return how many heads the baseline has."""
        return sum(self.model.config.heads)

    @cached_property
    def steps(self) -> list[Step]:
        """All steps: the baseline, its heads' roles, the pruned models after their scores, the healed ones."""
        numbers = sorted((round(share * self.total) for share in self.shares), reverse=True)
        made = [Step("whole", "whole", self.config.seed, None, 0, self.depends("whole", self.tokens))]
        made.append(Step("roles", "roles", self.config.seed, None, 0, self.depends("roles", 0)))
        for method in sorted(self.methods, key=METHODS.index):
            seeds = range(self.config.seed, self.config.seed + (self.seeds if method in SEEDED else 1))
            if method in SCORES:
                made += [Step("scores", method, seed, None, 0, self.depends(method, 0)) for seed in seeds]
            depends = self.depends(method, self.tokens)
            made += [Step("pruned", method, seed, heads, 0, depends) for heads in numbers for seed in seeds]
        made += [
            dataclasses.replace(step, what="repaired", depends=step.depends | {"repair_reads": self.repair_tokens})
            for step in made
            if step.what == "pruned" and step.method in self.heal_methods and step.method not in REPAIRS
        ]
        finetune = {"finetune": settings(self.config.finetune) | {"steps": None}}
        return made + [
            dataclasses.replace(step, what="healed", steps=steps, depends=step.depends | finetune)
            for step in made
            for steps in self.heal
            if step.what == "whole" or (step.what == "pruned" and step.method in self.heal_methods)
        ]

    def depends(self, method: str, tokens: int) -> dict[str, Any]:
        """Return what a method's choice of heads depends on, and how much of the test split is read."""
        splits = [len(split) for split in (self.text.train, self.text.valid, self.text.test)]
        about = {"revision": REVISION, "model": self.digest, "text": self.text.digest, "splits": splits}
        about |= {"backend": self.backend, "tokens": tokens}
        if method == "gates":
            gate = {name: x for name, x in self.gate(None).to_dict().items() if name not in ("lam", "target_heads")}
            return about | {"gate": gate, "gate_train": settings(self.config.gate_train)}
        if method in REPAIRS:
            about |= {"repair_reads": self.repair_tokens}
        if method == "least-squares":
            about |= {"costs": "relative"}
        reads = {"leave-one-out": self.sample, "magnitude": 0, "random": 0, "whole": 0, "least-squares": 0}
        reads["roles"] = min(self.score_tokens, ROLE_TOKENS)
        return about | {"reads": reads.get(method, self.score_tokens)}

    def gate(self, heads: int | None) -> GateConfig:
        """Return the run's gates, on frozen weights, that leave so many heads open."""
        return dataclasses.replace(self.config.gate, frozen=True, target_heads=heads)

    def work(self, step: Step) -> int:
        """Return about how long a step takes, in tokens of a forward pass."""
        passes = {
            "leave-one-out": self.total + 1,
            "michel": 2,
            "michel-global": 2,
            "roles": 8,
        }  # by the textbook, twice
        if step.what in ("scores", "roles"):
            return step.depends["reads"] * passes.get(step.method, 1)
        T, gates, finetune = self.model.config.T, self.config.gate_train, self.config.finetune
        trained = step.steps * finetune.B * T * 4  # a teacher's pass, and a backward pass takes two
        if step.what == "pruned" and step.method == "gates":
            trained = gates.steps * gates.B * T * 2  # backward to the gates alone
        return self.tokens + trained

    def earlier(self, what: str, step: Step, store: Store) -> dict[str, Any]:
        """Return the record that a step builds upon, of the same method and seed."""
        heads = step.heads if what == "pruned" else None
        wanted = (what, step.method, step.seed, heads)
        return next(store.records[s.key] for s in self.steps if (s.what, s.method, s.seed, s.heads) == wanted)

    @cached_property
    def blocks(self) -> list[list[Block]]:
        """The least-squares problems of all layers."""
        return read_blocks(self.model, self.text.train[: self.repair_tokens])

    def compute(self, step: Step, store: Store) -> dict[str, Any]:
        """Return a step's record: scores, names of roles, or a model's measurements and which heads were kept."""
        if step.what == "scores":
            tokens, rng = self.text.valid[: step.depends["reads"]], np.random.default_rng([step.seed, 0])
            scores = SCORES[step.method](self.model, tokens, rng)
            return {"scores": [[float(f"{x:.6g}") for x in layer] for layer in scores]}
        if step.what == "roles":
            return {"names": head_roles(self.model, self.text.valid[: step.depends["reads"]]).names().tolist()}
        if step.what == "whole":
            return self.measure(self.model) | {"heads_shifted": None}
        heads = step.heads or 0
        found: dict[str, Any] = {"heads_shifted": None}
        if step.what in ("repaired", "healed"):
            before = self.earlier("whole" if step.heads is None else "pruned", step, store)
            found = {"heads_shifted": before["heads_shifted"]}
            mask = self.mask(before)
        elif step.method == "gates":
            config = self.config.gate_train
            gated, objective = with_new_gates(self.model, self.gate(heads), config.steps // 2)
            self.train(gated, config, objective, np.random.default_rng([step.seed, 1]))
            found = {"heads_shifted": hit_target(gated)}
            mask = open_heads(gated)
        elif step.method == "least-squares":
            mask = search(self.blocks, heads, relative=True)
        else:
            mask = keep_best([np.array(x) for x in self.earlier("scores", step, store)["scores"]], heads)
        repair = "least-squares" if step.what == "repaired" else REPAIRS.get(step.method)
        closed = repaired_from(self.model, mask, self.blocks, repair) if repair else with_heads(self.model, mask)
        smaller = remove_closed_heads(closed)
        if step.what == "healed":
            config = dataclasses.replace(self.config.finetune, steps=step.steps)
            healing = Distillation(self.model, config.distill) if config.distill else LanguageModelling()
            self.train(smaller, config, healing, np.random.default_rng([step.seed, 2]))
        return self.measure(smaller) | found | {"kept": [np.flatnonzero(layer).tolist() for layer in mask]}

    def mask(self, record: dict[str, Any]) -> list[NDArray[np.bool_]]:
        """Return which heads a model kept; the baseline's record does not say, it keeps all."""
        kept = record.get("kept", [range(H) for H in self.model.config.heads])
        return [np.isin(range(H), ids) for H, ids in zip(self.model.config.heads, kept, strict=True)]

    def inference(self, store: Store) -> list[Record]:
        """Measure, now, what one text takes: a record for each number of heads, with the heads of the first method.

        The pruned models take turns with the baseline, whose time is 1.
        """
        masks: dict[int, tuple[str, list[NDArray[np.bool_]]]] = {}
        for step in self.steps:
            if step.what == "pruned" and (record := store.record(step)) is not None:
                masks.setdefault(record["heads_removed"], (step.method, self.mask(record)))
        made = []
        for removed, (method, mask) in masks.items():
            smaller = remove_closed_heads(with_heads(self.model, mask))
            whole, own = milliseconds_per_1k_tokens([self.model, smaller], self.text.valid, 0.0, streams=1)
            record = {"method": method, "heads_removed": removed, "whole_ms_per_1k_tokens": whole}
            made.append(record | {"ms_per_1k_tokens": own, "share_of_whole": own / whole})
        return made

    def train(self, model: Transformer, config: TrainConfig, objective: Objective, rng: np.random.Generator) -> None:
        """Train a model in place."""
        segments = Segments(self.text.train, config.B, model.config.T)
        training = Training.start(model, segments, config, objective, rng)
        while training.step < config.steps:
            train_step(training)

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

    def run(self, store: Store) -> None:
        """Compute all steps that are not in the store. Raises TinypruneError if one fails; the others are kept."""
        todo = [step for step in self.steps if store.record(step) is None]
        if not todo:
            return
        left, ops, piece = sum(map(self.work, todo)), self.model.ops, self.text.test[: 2 * self.model.config.T + 1]
        with announced(ops, "compare"), progress_bar(total=len(todo), desc="compare", unit="cell") as bar:
            pace = median_seconds(ops, lambda: evaluate(self.model, piece, 0)) / len(piece)
            say(f"compare: {len(todo)} of {len(self.steps)} cells to be computed, about {duration(pace * left)}")
            start, total = time.monotonic(), left
            for step in todo:
                try:
                    record = self.compute(step, store)
                except TinypruneError as error:
                    raise type(error)(f"{step}: {error}") from error
                store.add(step, Outcome(record))
                bar.update()
                left -= self.work(step)
                rest = duration((time.monotonic() - start) / max(total - left, 1) * left)
                found = f": perplexity {record['perplexity']:.4g}" if "perplexity" in record else ""
                say(f"compare: {step}{found}, about {rest} left")


def settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a stage that its result depends on."""
    without = ("evaluate_every", "checkpoint_every", "log_every")
    return {name: value for name, value in config.to_dict().items() if name not in without}


def open_comparison(run: str | Path, backend: str, options: dict[str, Any], **sizes: Any) -> Comparison:
    """Read the baseline and the text of the run in a directory, with some of its settings changed.

    `sizes` are the other fields of `Comparison`; where `methods`, `heal_methods` or `heal` are None, they are all that
    the model allows, all methods, and the steps of the run's table finetune. Raises UsageError if there is no such
    run, its baseline is unfinished, or a value is not allowed; CheckpointError if the baseline cannot be read.
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
        sizes["methods"] = [name for name in METHODS if name != "flap" or saved.model.config.bias != "none"]
        if "flap" not in sizes["methods"]:
            say("compare: flap is left out: its means go into biases, and this model has none")
    sizes["heal"] = [steps for steps in sizes["heal"] or [config.finetune.steps] if steps]
    sizes["heal_methods"] = sizes["heal_methods"] or sizes["methods"]
    text = load_text(saved.data, saved.tokenizer, digest=saved.digest)
    name = saved.metadata.get("source", directory.path.name)
    return Comparison(name, saved.model, digest, text, config, backend, **sizes)
