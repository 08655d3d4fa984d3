"""A cell: one model trained, pruned to a number of heads by one of the `methods`, trained further, and measured.

The stages are those of a run: train, gate, finetune. The baseline is trained in the first. What a method makes of it is
trained in the two others, so that all models that are compared have read the same text to the same place, at the same
learning rates, with as many restarts of the optimizer, and end at a low rate. Gates choose heads in the gate stage;
other methods choose at once. A model that starts from new weights has all three stages; one that is `longer` has as
many multiply-adds in place of steps. Heads are chosen on the training and the validation split; the test split is only
for the report.

In a model whose feed-forward units come in blocks (`model.U`) heads and blocks are removed apart: a number of `heads`
stands for as large a share of what all of them together have in parameters.

A cell is plain data and its computation a pure function, so it can be sent to any process or machine, together with the
baseline that it starts from, as the bytes of a safetensors file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from tinyprune.config import RETIRED, DataConfig, RunConfig, TrainConfig
from tinyprune.data import Segments, Text, load_text
from tinyprune.errors import NotFiniteError, TinypruneError
from tinyprune.experiments.methods import BASELINE, CONTROLS, METHODS, Method
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_multiply_adds, count_parameters, part_prices
from tinyprune.model.gates import gate_names, joined_log_alpha, split_log_alpha
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pruning.gates import hit_target, open_heads, with_new_gates
from tinyprune.pruning.importance import CRITERIA, Mask, keep_best, keep_within, with_heads
from tinyprune.pruning.importance.fits import BlockFit, read_fits
from tinyprune.pruning.importance.least_squares import search
from tinyprune.pruning.repair import repaired_from
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import LanguageModelling, Objective, training_steps

SCORE_TOKENS = 24_000  # how much of the validation split criteria read
REPAIR_TOKENS = 60_000  # how much of the training split repairs read
REVISION = 1  # of the methods: with another number all cells are computed again
NOT_IN_KEYS = "evaluate_every", "evaluate_tokens", "checkpoint_every", "log_every"  # settings that change no result

# Numba's simplest threading layer ends the process when two threads call it at the same time.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Cell:
    """One model to compute."""

    config: RunConfig  # model, text, stages and seed; `heads` replaces its `gate.target_heads`
    method: str  # one of `METHODS` or `CONTROLS`
    heads: int | None = None  # how many stay in all layers together; None if none are removed
    scope: str = "global"  # for criteria, see `importance.keep_best`
    backend: str = "numba"
    digest: str | None = None  # sha256 of the text; a worker with another text refuses the cell. None accepts any text

    @property
    def recipe(self) -> Method:
        """Return what the method does."""
        return (CONTROLS | METHODS)[self.method]

    @property
    def baseline(self) -> Cell | None:
        """Return the cell whose weights this one starts from; None if it starts from new weights."""
        return None if self.recipe.start == "new" else dataclasses.replace(self, method=BASELINE, heads=None)

    @property
    def stages(self) -> dict[str, TrainConfig]:
        """Return the settings of the three stages."""
        return {"train": self.config.train, "gate": self.config.gate_train, "finetune": self.config.finetune}

    @property
    def trained(self) -> list[str]:
        """Return the stages in which the weights that are measured were trained, in order."""
        gates = self.recipe.choose == "gates" and not self.recipe.rewound
        return [*([] if self.baseline is None else ["train"]), *gates * ["gate"], *self.recipe.heal]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: everything that the result depends on, and nothing else."""
        config = self.config.to_dict()
        for stage in ("train", "gate_train", "finetune"):
            for name in NOT_IN_KEYS:
                config[stage].pop(name, None)
        gates = self.recipe.choose == "gates"
        if gates:
            config["gate"] |= RETIRED["gate"]  # so that cells of version 0.2 keep their keys
            # `heads` and the method replace these settings; one that changes no other stood for its objective
            for name in ("target_heads", "lam", *(self.recipe.gates or ["objective"])):
                config["gate"].pop(name, None)
        else:
            del config["gate"]
        if self.method == BASELINE:
            del config["gate_train"], config["finetune"]
        values = {"revision": REVISION, "method": self.method, "backend": self.backend, "config": config}
        values["digest"] = self.digest
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


def healing_objective(whole: Transformer, distill: float) -> Objective:
    """Return what healing minimises: the cross-entropy, of which a share may be the divergence from the whole model."""
    return Distillation(whole, distill) if distill else LanguageModelling()


@dataclass(frozen=True)
class Outcome:
    """The result of a cell."""

    record: dict[str, Any]  # plain values, see `CellRun.measure`
    checkpoint: bytes | None = None  # the baseline's weights as a safetensors file; None for other cells


def compute(cell: Cell, baseline: bytes | None = None) -> Outcome:
    """Compute a cell, given the checkpoint of `cell.baseline`. Raises TinypruneError if that fails.

    It takes one thread; to use a whole machine, compute as many cells at a time as it has processors.
    """
    with ONE_AT_A_TIME:
        ops = get_backend(cell.backend)
        start = time.perf_counter()
        with ops.threads(1):
            outcome = CellRun(cell, ops, baseline).run()
        outcome.record["seconds"] = round(time.perf_counter() - start, 2)
        return outcome


@lru_cache(2)
def text_of(data: DataConfig, digest: str | None = None) -> Text:
    """Return the tokenised text, cached for the next cell. Raises UsageError if its sha256 is not `digest`."""
    return load_text(data, digest=digest)


class CellRun:
    """The computation of one cell; `record` collects what is measured on the way.

    Args:
        cell: what to compute.
        ops: the backend.
        baseline: the checkpoint of `cell.baseline`; None if there is none.
    """

    def __init__(self, cell: Cell, ops: Engine, baseline: bytes | None) -> None:
        self.cell = cell
        self.recipe = cell.recipe
        self.ops = ops
        self.text = text_of(cell.config.data, cell.digest)
        self.baseline = baseline
        self.record: dict[str, Any] = {"steps_total": cell.config.train.steps if cell.baseline else 0}
        if baseline is not None:
            self.record["baseline_sha256"] = hashlib.sha256(baseline).hexdigest()[:16]

    def run(self) -> Outcome:
        """Start from the baseline or new weights; choose, repair, remove (`smaller`); heal; measure."""
        whole = self.start()
        model = whole if self.cell.heads is None else self.smaller(whole)
        objective = healing_objective(whole, self.recipe.distill)
        for stage in self.recipe.heal:
            config = self.cell.stages[stage]
            if self.recipe.longer and stage == "train":
                config = dataclasses.replace(config, steps=config.steps + self.steps_saved(whole, model))
            self.train(model, stage, config, objective)
        weights = None
        if self.cell.method == BASELINE:
            weights = safetensors.numpy.save({k: np.ascontiguousarray(x) for k, x in model.host_params().items()})
        return Outcome(self.measure(model), weights)

    def start(self) -> Transformer:
        """Return the baseline, or a model with new weights, in new arrays."""
        config = dataclasses.replace(self.cell.config.model, V=self.text.tokenizer.V)
        if self.cell.baseline is None:
            return Transformer(config, init_parameters(config, self.generator("init")), ops=self.ops)
        return Transformer(config, safetensors.numpy.load(self.baseline), ops=self.ops)

    def smaller(self, whole: Transformer) -> Transformer:
        """Return a model with the heads that the method chooses, after its repair."""
        recipe = self.recipe
        if recipe.choose == "gates":
            gated = self.learn_gates()
            if recipe.shuffled:
                self.shuffle(gated)
            if recipe.rewound:
                gated = with_heads(whole, open_heads(gated))
        else:
            mask = self.choose(whole)
            gated = repaired_from(whole, mask, self.fits) if recipe.repair else with_heads(whole, mask)
        model = remove_closed_heads(gated)
        if not whole.config.U and sum(model.config.heads) != self.cell.heads:
            raise TinypruneError(f"{self.cell.heads} heads were asked for, {sum(model.config.heads)} stay")
        return model

    @cached_property
    def budget(self) -> tuple[NDArray | None, float]:
        """Return what each part costs, and what may stay; without blocks of units None and the number of heads."""
        config, heads = dataclasses.replace(self.cell.config.model, V=self.text.tokenizer.V), self.cell.heads or 0
        if not config.U:
            return None, heads
        prices, _ = part_prices(config, "parameters")
        return prices, float(prices.sum()) * heads / config.heads_total

    def choose(self, whole: Transformer) -> Mask:
        """Return which heads, and blocks, stay, by scores, by search, or the same share of each layer."""
        heads, config, (prices, budget) = self.cell.heads or 0, whole.config, self.budget
        if self.recipe.choose == "layers":
            share = heads / config.heads_total
            kinds = [config.heads, config.blocks] if config.U else [config.heads]
            alike = [([np.zeros(n) for n in parts], round(share * sum(parts))) for parts in kinds]
            return [mask for scores, count in alike for mask in keep_best(scores, count, "layer")]
        if self.recipe.choose == "search":
            return search(self.fits, budget, prices=prices)
        criterion, rng = CRITERIA[self.recipe.criterion], self.generator("scores")
        scores = criterion(whole, self.text.valid[:SCORE_TOKENS], rng)
        self.record["scores"] = [[float(f"{x:.4g}") for x in layer] for layer in scores]
        return keep_best(scores, heads, self.cell.scope) if prices is None else keep_within(scores, prices, budget)

    def learn_gates(self) -> Transformer:
        """Return a model that was trained with gates, of which exactly the cell's number of heads are open."""
        config, changes, stage = self.cell.config, self.recipe.gates, self.cell.config.gate_train
        if (prices := self.budget[0]) is None:
            changes = changes | {"target_heads": self.cell.heads}
        else:
            _, whole = part_prices(dataclasses.replace(config.model, V=self.text.tokenizer.V), "parameters")
            share = 1 - (float(prices.sum()) - self.budget[1]) / whole
            changes = changes | {"target_share": share, "price": "parameters"}
        gate = dataclasses.replace(config.gate, **changes)
        warmup = stage.steps // 2 if gate.lam_warmup is None else gate.lam_warmup
        gated, objective = with_new_gates(self.start(), gate, warmup)
        before = self.record["steps_total"]
        self.train(gated, "gate", stage, objective)
        if self.recipe.rewound:
            self.record["steps_total"] = before  # these steps only chose heads: what stays is trained for as many again
        params = gated.host_params()
        names = gate_names(config.model.L, gated.config.U)
        self.record["scores"] = [[round(float(x), 4) for x in params[name]] for name in names]
        self.record["heads_shifted"] = hit_target(gated)
        self.record["bits_per_character_gated"] = self.bits(gated, "valid")
        return gated

    def train(self, model: Transformer, stage: str, config: TrainConfig, objective: Objective) -> None:
        """Train `model` in place for one stage."""
        step, before = 0, self.record["steps_total"]
        try:
            segments = Segments(self.text.train, config.B, model.config.T, before)
            for step in training_steps(model, segments, config, objective, self.generator(stage)):  # noqa: B007
                pass
        except NotFiniteError as error:
            table = "gate_train" if stage == "gate" else stage
            raise NotFiniteError(
                f"step {step + 1} of stage {stage} gave numbers that are not finite; lower its "
                f"learning rate, say with --set {table}.lr={config.lr / 2:g}"
            ) from error
        self.record["steps_total"] = before + config.steps
        self.record.setdefault("bits_per_character_after", {})[stage] = self.bits(model, "valid")

    def shuffle(self, gated: Transformer) -> None:
        """Deal the values of all gates to other heads: the open ones to those that the criterion `random` keeps."""
        values = joined_log_alpha(gated.params, gated.config.L, gated.ops)
        order = np.argsort(np.concatenate(CRITERIA["random"](gated, self.text.valid, self.generator("scores"))))
        values[order] = np.sort(values)
        gated.params |= split_log_alpha(values, gated.config, gated.ops)

    def steps_saved(self, whole: Transformer, model: Transformer) -> int:
        """Return how many steps `model` can make for the multiply-adds that `whole` needs more in two stages."""
        large, small = (count_multiply_adds(x.config) for x in (whole, model))
        return round((self.cell.config.train.steps + self.cell.config.gate_train.steps) * (large - small) / small)

    @cached_property
    def fits(self) -> list[list[BlockFit]]:
        """The least-squares problems of the baseline's layers."""
        return read_fits(self.start(), self.text.train[:REPAIR_TOKENS])

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
        kept |= {"heads_total": config.heads_total} | ({"blocks": list(config.blocks)} if config.U else {})
        costs = {"parameters": count_parameters(config), "multiply_adds_per_token": count_multiply_adds(config)}
        return kept | costs | {"bits_per_character": quality} | self.record
