"""A cell: one model trained, pruned to a number of heads by one of the `methods`, trained further, and measured.

The stages are those of a run: train, gate, finetune. The baseline is trained in the first. What a method makes of it is
trained in the two others, so that all models that are compared have read the same text to the same place, at the same
learning rates, with as many restarts of the optimizer, and end at a low rate. Gates choose heads in the gate stage;
other methods choose at once. A model that starts from new weights has all three stages; one that is `longer` has as
many multiply-adds in place of steps. Heads are chosen on the training and the validation split; the test split is only
for the report.

In a model whose feed-forward units come in blocks (`model.U`) heads and blocks are removed apart: a number of `heads`
stands for as large a share of what all of them together have in parameters.

A cell is plain data, and stands for a recipe of `method.prune`. Its computation is a pure function, so it can be sent
to any process or machine, together with the baseline that it starts from, as the bytes of a safetensors file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors.numpy

from tinyprune.config import (
    STAGE_TABLES,
    ChooseConfig,
    DataConfig,
    RunConfig,
    TrainConfig,
    as_version_02,
)
from tinyprune.data import Text, load_text
from tinyprune.errors import NotFiniteError, TinypruneError
from tinyprune.experiments.methods import BASELINE, CONTROLS, METHODS, Method
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.machine import processor_name
from tinyprune.method.criteria import random_scores
from tinyprune.method.prune import heal, prune
from tinyprune.method.recipe import Recipe, Stage, Watch
from tinyprune.method.texts import Texts
from tinyprune.model.counting import count_multiply_adds, count_parameters
from tinyprune.model.parameters import init_parameters
from tinyprune.model.parts import Parts, Scores
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.training.evaluation import evaluate

SCORE_TOKENS = 24_000  # how much of the validation split criteria read
REPAIR_TOKENS = 60_000  # how much of the training split repairs read
REVISION = 1  # of the methods: with another number all cells are computed again
# Settings that change no result.
NOT_IN_KEYS = "evaluate_every", "evaluate_tokens", "checkpoint_every", "log_every"

# Numba's simplest threading layer ends the process when two threads call it at the same time.
ONE_AT_A_TIME = threading.Lock()


TIMES = ("machine", "started", "ended", "seconds")  # of a record: where and when it was computed


@dataclass(frozen=True)
class Cell:
    """One model to compute."""

    config: RunConfig  # model, text, stages and seed; `heads` replaces its `choose.target_heads`
    method: str  # one of `METHODS` or `CONTROLS`
    heads: int | None = None  # how many stay in all layers together; None if none are removed
    scope: str = "global"  # for criteria, see `masks.keep_best`
    backend: str = "numba"
    digest: str | None = None  # sha256 of the text; a worker with another one refuses the cell

    @property
    def definition(self) -> Method:
        """Return what the method does."""
        return (CONTROLS | METHODS)[self.method]

    @property
    def baseline(self) -> Cell | None:
        """Return the cell whose weights this one starts from; None if it starts from new weights."""
        if self.definition.start == "new":
            return None
        return dataclasses.replace(self, method=BASELINE, heads=None)

    @property
    def stages(self) -> dict[str, TrainConfig]:
        """Return the settings of the three stages."""
        return {stage: getattr(self.config, table) for stage, table in STAGE_TABLES.items()}

    @property
    def recipe(self) -> Recipe:
        """Return what `method.prune` is to do with the whole model."""
        method, config = self.definition, self.config
        gate = dataclasses.replace(config.gate, **method.gates)
        repair = dataclasses.replace(config.repair, tokens=0)
        if method.repair:
            repair = dataclasses.replace(config.repair, tokens=REPAIR_TOKENS, mode="at-once")
        healing = {}
        for stage in method.heal:
            healing[stage] = dataclasses.replace(self.stages[stage], distill=method.distill)
        return Recipe(self.choice(), gate, config.gate_train, repair, healing)

    def choice(self) -> ChooseConfig:
        """Return how many heads stay, or which share of the parameters, and who chooses them."""
        method, model = self.definition, self.config.model
        if self.heads is None:
            return self.config.choose
        target: dict[str, Any] = {"target_heads": self.heads, "target_share": None}
        if model.U:
            prices, whole = Parts(model).prices("parameters")
            share = 1 - float(prices.sum()) * (1 - self.heads / model.heads_total) / whole
            target = {"target_heads": None, "target_share": share, "price": "parameters"}
        given = {"by": method.by, "scope": self.scope, "rewind": method.rewound}
        return dataclasses.replace(self.config.choose, tokens=SCORE_TOKENS, **target, **given)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: everything that the result depends on, and nothing else."""
        config = as_version_02(self.config)
        for stage in ("train", "gate_train", "finetune"):
            for name in NOT_IN_KEYS:
                config[stage].pop(name, None)
        gates = self.definition.by == "gates"
        if gates:
            # `heads` and the method replace these settings; what it changed otherwise was its objective
            for name in ("target_heads", "lam", *(self.definition.gates or ["objective"])):
                config["gate"].pop(name, None)
        else:
            del config["gate"]
        if self.method == BASELINE:
            del config["gate_train"], config["finetune"]
        values = {"revision": REVISION, "method": self.method, "backend": self.backend}
        values |= {"config": config, "digest": self.digest}
        if self.heads is not None:
            values["heads"] = self.heads
        if self.method in METHODS and not gates:
            values["scope"] = self.scope
        return values

    @property
    def key(self) -> str:
        """A hash of `to_dict()`: cells with equal keys have equal results, on processors of one kind."""
        return key_of(self.to_dict())

    def __str__(self) -> str:
        heads = "" if self.heads is None else f" {self.heads} heads"
        return f"{self.config.model.kind} {self.method}{heads}, seed {self.config.seed}"


def key_of(values: dict[str, Any]) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PlainCell:
    """A cell of one checkpoint, whose fields are plain values; `grid` and `store` use these and its name."""

    baseline = None  # the checkpoint is at hand: no cell needs another's weights

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: all that the result depends on."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """A hash of `to_dict()`."""
        return key_of(self.to_dict())


@dataclass(frozen=True)
class Outcome:
    """The result of a cell."""

    record: dict[str, Any]  # plain values, see `CellRun.measure`
    checkpoint: bytes | None = None  # the baseline's weights, a safetensors file; None for others


def compute(cell: Cell, baseline: bytes | None = None) -> Outcome:
    """Compute a cell, given the checkpoint of `cell.baseline`. Raises TinypruneError if that fails.

    It takes one thread; to use a whole machine, compute as many cells at a time as it has processors.
    """
    with ONE_AT_A_TIME:
        ops = get_backend(cell.backend)
        with ops.threads(1), timed() as times:
            outcome = CellRun(cell, ops, baseline).run()
        outcome.record.update(times)
        return outcome


@contextmanager
def timed() -> Iterator[dict[str, Any]]:
    """Yield a dictionary that has, when the context ends, the fields `TIMES` of a record, which do not repeat."""
    times: dict[str, Any] = {"machine": processor_name(), "started": now()}
    start = time.perf_counter()
    yield times
    times |= {"ended": now(), "seconds": round(time.perf_counter() - start, 2)}


def now() -> str:
    """Return the time in UTC, such as 2026-12-03T03:30:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(2)
def text_of(data: DataConfig, digest: str | None = None) -> Text:
    """Return the tokenised text, cached for the next cell. Raises UsageError if its sha256 is not `digest`."""
    return load_text(data, digest=digest)


class CellRun(Watch):
    """The computation of one cell; `record` collects what is measured on the way.

    Args:
        cell: what to compute.
        ops: the backend.
        baseline: the checkpoint of `cell.baseline`; None if there is none.
    """

    def __init__(self, cell: Cell, ops: Engine, baseline: bytes | None) -> None:
        text = text_of(cell.config.data, cell.digest)
        model = dataclasses.replace(cell.config.model, V=text.tokenizer.V)
        self.cell = dataclasses.replace(cell, config=dataclasses.replace(cell.config, model=model))
        self.ops = ops
        self.text = text
        self.baseline = baseline
        self.record: dict[str, Any] = {"steps_total": 0}
        if cell.baseline is not None:
            self.record["steps_total"] = cell.config.train.steps
        if baseline is not None:
            self.record["baseline_sha256"] = hashlib.sha256(baseline).hexdigest()[:16]

    def run(self) -> Outcome:
        """Start from the baseline or new weights; prune and heal; measure."""
        whole, cell, train = self.start(), self.cell, self.cell.config.train
        texts = Texts(self.text, read=(train.B, self.record["steps_total"]))
        if cell.heads is None:
            model = whole
            for stage, config in cell.recipe.heal.items():
                heal(model, whole, stage, config, texts, self.generator, self)
        else:
            model = prune(whole, cell.recipe, texts, self.generator, self)
            if not whole.config.U and sum(model.config.heads) != cell.heads:
                stay = sum(model.config.heads)
                raise TinypruneError(f"{cell.heads} heads were asked for, {stay} stay")
        weights = None
        if cell.method == BASELINE:
            params = model.host_params()
            weights = safetensors.numpy.save({k: np.ascontiguousarray(x) for k, x in params.items()})
        return Outcome(self.measure(model), weights)

    def start(self) -> Transformer:
        """Return the baseline, or a model with new weights, in new arrays."""
        config = self.cell.config.model
        if self.cell.baseline is None:
            params = init_parameters(config, self.generator("init"))
        else:
            params = safetensors.numpy.load(self.baseline)
        return Transformer(config, params, ops=self.ops)

    def scored(self, scores: Scores) -> None:
        """Record the scores of a criterion."""
        self.record["scores"] = [[float(f"{x:.4g}") for x in own] for own in scores]

    def fit(self, stage: Stage) -> None:
        """Train a stage, and measure the model after it."""
        method, record, config = self.cell.definition, self.record, stage.config
        if method.longer and stage.name == "train":
            steps = config.steps + self.steps_saved(stage.model)
            stage.config = config = dataclasses.replace(config, steps=steps)
        step = 0
        try:
            for step, _ in stage.steps():  # noqa: B007
                pass
        except NotFiniteError as error:
            table = STAGE_TABLES[stage.name]
            raise NotFiniteError(
                f"step {step + 1} of stage {stage.name} gave numbers that are not finite; lower its "
                f"learning rate, say with --set {table}.lr={config.lr / 2:g}"
            ) from error
        # the steps of gates that are rewound only chose heads: what stays has as many again
        if not (method.rewound and stage.model.gate):
            record["steps_total"] += config.steps
        after = record.setdefault("bits_per_character_after", {})
        after[stage.name] = self.bits(stage.model, "valid")
        if stage.model.gate is not None:
            self.finish_gates(stage)

    def finish_gates(self, stage: Stage) -> None:
        """Record what the gates have learned, and end their stage; deal them to random heads if the method does."""
        params, parts = stage.model.host_params(), Parts(stage.model.config)
        self.record["scores"] = [[round(float(x), 4) for x in params[name]] for name in parts.gates]
        self.record["heads_shifted"] = stage.finish(stage.model)
        self.record["bits_per_character_gated"] = self.bits(stage.model, "valid")
        if self.cell.definition.shuffled:
            self.shuffle(stage.model)

    def shuffle(self, gated: Transformer) -> None:
        """Deal the values of all gates to other heads: the open ones to those that the criterion `random` keeps."""
        parts = Parts(gated.config)
        values = parts.log_alpha(gated.params, gated.ops)
        scores = random_scores(gated, self.text.valid, self.generator("scores"))
        order = np.argsort(np.concatenate(scores))
        values[order] = np.sort(values)
        gated.params |= parts.named(values, gated.ops)

    def steps_saved(self, model: Transformer) -> int:
        """Return how many steps `model` can make for what the whole model needs more in two stages."""
        config = self.cell.config
        large, small = count_multiply_adds(config.model), count_multiply_adds(model.config)
        return round((config.train.steps + config.gate_train.steps) * (large - small) / small)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a random generator, derived from the seed and the purpose: every method gets the same numbers."""
        purposes = ("init", "train", "gate", "finetune", "scores")
        return np.random.default_rng([self.cell.config.seed, purposes.index(purpose)])

    def bits(self, model: Transformer, split: str) -> float | None:
        """Return bits per character on a split."""
        return evaluate(model, getattr(self.text, split), self.text.characters[split]).bits_per_character

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Return the cell's record: size, computation, quality on both splits, and what `record` has collected."""
        *_, valid = self.record["bits_per_character_after"].values()  # after the last stage
        quality = {"valid": valid, "test": self.bits(model, "test")}
        config = model.config
        kept = {"heads": list(config.heads), "head_ids": [list(layer) for layer in config.head_ids]}
        kept["heads_total"] = config.heads_total
        if config.U:
            kept["blocks"] = list(config.blocks)
        costs = {"parameters": count_parameters(config)}
        costs["multiply_adds_per_token"] = count_multiply_adds(config)
        return kept | costs | {"bits_per_character": quality} | self.record
