"""A cell: one model trained, pruned to a number of heads, trained further, and measured.

    baseline      config.train steps without gates                                        (one for each seed)
    a criterion   heads removed from the baseline, then gate_train + finetune steps       (`pruning.importance`)
    gates         gate_train steps with gates, closed heads removed, finetune steps       (`pruning.gates`)
    gates-rewound the same gates choose the heads, but the baseline's weights are kept, finetune steps
    gates-heads   the same heads and weights, gate_train + finetune steps: the choice of heads alone
    unpruned      nothing removed, gate_train + finetune steps
    from scratch  train + gate_train steps with gates, or with few heads, from the first step on, finetune steps

After the baseline every method has the same number of steps with the same learning rates. Heads are chosen on the
training and the validation split; the test split is read once, at the end.

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
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors.numpy

from tinyprune.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tinyprune.data import Segments, Text, load_text
from tinyprune.errors import NotFiniteError, TinypruneError, UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_multiply_adds, count_parameters
from tinyprune.model.gates import gate_names
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pruning.gates import hit_target, with_new_gates
from tinyprune.pruning.importance import CRITERIA, keep_best, score_in_rounds, with_heads
from tinyprune.pruning.importance.blocks import read_blocks
from tinyprune.pruning.importance.least_squares import search
from tinyprune.pruning.repair import repaired
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import LanguageModelling, Objective, Training, train_step

# How a method's gates differ from the configured ones. Voita et al. 2019 use soft gates without output scaling; Li,
# Cotterell & Sachan 2021 use none either, and their k gates need no penalty.
GATES: dict[str, dict[str, Any]] = {
    "gates": {"objective": "task"},
    "gates-layerwise": {"objective": "layerwise"},
    "voita": {"hard": False, "output_scaling": False},
    "gumbel-top-k": {"distribution": "top-k", "output_scaling": False},
    "deterministic": {"distribution": "deterministic"},
}
# Criteria that are evaluated again after every tenth of all heads is removed, as by Michel et al. 2019.
IN_ROUNDS = {"michel-iterative": "michel"}
ROUND_SHARE = 0.1
# Which criterion chooses the heads, how what stays is repaired before they are removed, and the share of distillation
# in the loss afterwards. The least-squares search chooses by itself, in all layers together.
HELPED: dict[str, tuple[str | None, str | None, float]] = {
    "michel-repaired": ("michel", "least-squares", 0.0),
    "michel-distilled": ("michel", None, 0.5),
    "flap": ("fluctuation", "mean", 0.0),
    "least-squares": (None, "least-squares", 0.0),
    "least-squares-distilled": (None, "least-squares", 0.5),
}
FIXED_LAM = "gates-fixed-lam"  # as in the paper: lam says how many heads close, not a target
FROM_SCRATCH = "gates-from-scratch"
SMALL = "small-from-scratch"  # every layer with the same share of its heads, and no gates
# The heads that gates close are removed from the baseline, with its weights from before the gate stage: is it their
# choice that helps, or the training of the weights? With "gates-heads" what stays has all the steps of a criterion's
# model, and those in which the gates have chosen are not counted.
REWOUND = ("gates-rewound", "gates-heads")
METHODS = (*CRITERIA, *IN_ROUNDS, *HELPED, *GATES, *REWOUND)
ABOUT = {  # in one line, what is not a criterion with a file of its own
    "michel-iterative": "Michel's importance, evaluated again after every tenth of all heads is removed",
    "michel-repaired": "Michel's heads; the others' Wo and bo are fitted to the layer's output (OSSCAR's formula)",
    "michel-distilled": "Michel's heads; half of the loss afterwards is the divergence from the whole model",
    "flap": "Fluctuation's heads; their mean output goes into bo (FLAP, An et al. 2023)",
    "least-squares": "The heads that the others can make up for best, found by exchanges, and the fit (OSSCAR)",
    "least-squares-distilled": "The same; half of the loss afterwards is the divergence from the whole model",
    "gates": "Hard-Concrete gates under the L0 loss, trained with the weights (Shim et al. 2021)",
    "gates-layerwise": "The same gates, which also minimise the error that they cause in each layer's output",
    "voita": "Soft Hard-Concrete gates without output scaling (Voita et al. 2019)",
    "gumbel-top-k": "Soft top-k: gates that always leave exactly k heads open (Li, Cotterell & Sachan 2021)",
    "deterministic": "Hard-Concrete gates without noise",
    "gates-rewound": "The heads that `gates` keeps, with the weights from before the gate stage",
    "gates-heads": "The same, and all steps to fine-tune them: the choice of heads alone",
}
SCORE_TOKENS = 24_000  # how much of the validation split criteria read
REPAIR_TOKENS = 60_000  # how much of the training split repairs read
REVISION = 1  # of the methods: with another number all cells are computed again
PATH_EVERY = 10  # steps between two points of a gate's path

# Numba's simplest threading layer ends the process when two threads call it at the same time.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Cell:
    """One model to compute."""

    config: RunConfig  # model, text, stages and seed; `heads` replaces its `gate.target_heads`
    method: str  # "baseline", "unpruned", `FIXED_LAM`, `FROM_SCRATCH`, `SMALL` or one of `METHODS`
    heads: int | None = None  # how many are kept in all layers together; None for a method that is not told
    scope: str = "global"  # for criteria, see `importance.keep_best`
    backend: str = "numba"
    digest: str | None = None  # sha256 of the text; a worker with another text refuses the cell. None accepts any text
    readings: tuple[int, ...] = ()  # steps of fine-tuning after which the splits are read as well, from 0

    def __post_init__(self) -> None:
        known = ("baseline", "unpruned", FIXED_LAM, FROM_SCRATCH, SMALL, *METHODS)
        if self.method not in known:
            raise UsageError(f"method must be one of {', '.join(known)}; got {self.method!r}")
        without = ("baseline", "unpruned", FIXED_LAM)
        if (self.heads is None) != (self.method in without):
            raise UsageError(f"heads must be a number, except for {', '.join(without)}; got {self.heads}")
        if self.heads is not None and not 0 <= self.heads <= self.config.model.heads_total:
            raise UsageError(f"heads must be between 0 and {self.config.model.heads_total}, got {self.heads}")

    @property
    def baseline(self) -> Cell | None:
        """Return the cell that this one starts from; None if it starts from new weights."""
        if self.method in ("baseline", FROM_SCRATCH, SMALL):
            return None
        return dataclasses.replace(self, method="baseline", heads=None, readings=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: everything that the result depends on, and nothing else."""
        config = self.config.to_dict()
        for stage in ("train", "gate_train", "finetune"):
            for name in ("evaluate_every", "checkpoint_every", "log_every"):
                config[stage].pop(name)
        if self.method in GATES or self.method in REWOUND or self.method == FROM_SCRATCH:
            # determined by `heads` and the method
            for name in ("target_heads", "lam", *GATES.get(self.method, GATES["gates"])):
                config["gate"].pop(name, None)
        elif self.method == FIXED_LAM:
            config["gate"].pop("target_heads", None)
        else:
            del config["gate"]
        if self.method == "baseline":
            del config["gate_train"], config["finetune"]
        own = {"revision": REVISION, "method": self.method, "backend": self.backend, "config": config}
        own["digest"] = self.digest
        if self.heads is not None:
            own["heads"] = self.heads
        if self.readings:
            own["readings"] = list(self.readings)
        if self.method in CRITERIA or self.method in IN_ROUNDS or self.method in HELPED:
            own["scope"] = self.scope
        return own

    @property
    def key(self) -> str:
        """A hash of `to_dict()`: cells with equal keys have equal results."""
        return key_of(self.to_dict())

    def __str__(self) -> str:
        heads = "" if self.heads is None else f" {self.heads} heads"
        return f"{self.config.model.kind} {self.method}{heads}, seed {self.config.seed}"


def key_of(values: dict[str, Any]) -> str:
    """Return a hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """The result of a cell."""

    record: dict[str, Any]  # plain values, see `CellRun.measure`
    checkpoint: bytes | None = None  # the baseline's weights as a safetensors file; None for other cells


def compute(cell: Cell, baseline: bytes | None = None) -> Outcome:
    """Compute a cell, given the checkpoint of `cell.baseline`. Raises TinypruneError, naming the cell, if that fails.

    It takes one thread; to use a whole machine, compute as many cells at a time as it has processors.
    """
    with ONE_AT_A_TIME:
        ops = get_backend(cell.backend)
        start = time.perf_counter()
        try:
            with ops.threads(1):
                outcome = CellRun(cell, ops).run(baseline)
        except TinypruneError as error:
            raise type(error)(f"{cell}: {error}") from error
        outcome.record["seconds"] = round(time.perf_counter() - start, 2)
        return outcome


@lru_cache(2)
def read_text(data: DataConfig, digest: str | None = None) -> Text:
    """Return the tokenised text, cached for the next cell. Raises UsageError if its sha256 is not `digest`."""
    return load_text(data, digest=digest)


class CellRun:
    """The computation of one cell; `record` collects what is measured on the way."""

    def __init__(self, cell: Cell, ops: Engine) -> None:
        self.cell = cell
        self.config = cell.config
        self.ops = ops
        self.text = read_text(cell.config.data, cell.digest)
        self.record: dict[str, Any] = {"steps_total": 0}

    def run(self, baseline: bytes | None) -> Outcome:
        """Train, prune, train further and measure; `baseline` as in `compute`."""
        method, config = self.cell.method, self.config
        objective: Objective | None = None
        if method == "baseline":
            model = self.new_model()
            self.train(model, config.train, "train")
            weights = {name: np.ascontiguousarray(x) for name, x in model.host_params().items()}
            return Outcome(self.measure(model), safetensors.numpy.save(weights))
        together = dataclasses.replace(config.train, steps=config.train.steps + config.gate_train.steps)
        if method == SMALL:
            new = self.new_model()
            mask = keep_best([np.zeros(H) for H in new.config.heads], self.cell.heads, "layer")
            model = remove_closed_heads(with_heads(new, mask))
            self.train(model, together, "train")
        elif method == FROM_SCRATCH:
            # The gates' learning rate is that of the gate stage.
            faster = config.gate.lr_multiplier * config.gate_train.lr / config.train.lr
            model = self.gated(self.new_model(), GATES["gates"] | {"lr_multiplier": faster}, together)
        else:
            if baseline is None:
                raise UsageError(f"{self.cell} needs the checkpoint of its baseline, got none")
            self.record["steps_total"] = config.train.steps
            model = Transformer(self.model_config, safetensors.numpy.load(baseline), ops=self.ops)
            if method in GATES or method == FIXED_LAM:
                model = self.gated(model, GATES.get(method, {}), config.gate_train)
            elif method in REWOUND:
                head_ids = self.gated(model, GATES["gates"], config.gate_train).config.head_ids
                whole = Transformer(self.model_config, safetensors.numpy.load(baseline), ops=self.ops)
                mask = [np.isin(range(H), ids) for H, ids in zip(whole.config.heads, head_ids, strict=True)]
                model = remove_closed_heads(with_heads(whole, mask))
                if method == "gates-heads":
                    self.record["steps_total"] = config.train.steps
                    self.train(model, config.gate_train, "gate")
            else:
                whole, model = model, self.pruned(model)
                share = HELPED[method][2] if method in HELPED else 0.0
                if share:
                    objective = Distillation(whole, share)
                self.train(model, config.gate_train, "gate", objective)
        if self.cell.heads not in (None, sum(model.config.heads)):
            raise TinypruneError(f"{self.cell.heads} heads were asked for, {sum(model.config.heads)} stay")
        self.train(model, config.finetune, "finetune", objective)
        return Outcome(self.measure(model))

    @property
    def model_config(self) -> ModelConfig:
        """The configured model, with the text's vocabulary size."""
        return dataclasses.replace(self.config.model, V=self.text.tokenizer.V)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a random generator for one purpose, derived from the seed; it is the same for every method."""
        purposes = ("init", "train", "gate", "finetune", "scores")
        return np.random.default_rng([self.config.seed, purposes.index(purpose)])

    def new_model(self) -> Transformer:
        """Return a model with new weights."""
        return Transformer(self.model_config, init_parameters(self.model_config, self.generator("init")), ops=self.ops)

    def pruned(self, model: Transformer) -> Transformer:
        """Return the model without the heads that a criterion scores lowest; unchanged if no number is given."""
        method, heads = self.cell.method, self.cell.heads
        if heads is None:
            return model
        rng, tokens = self.generator("scores"), self.text.valid[:SCORE_TOKENS]
        text = self.text.train[:REPAIR_TOKENS]
        by, repair, _ = HELPED.get(method, (method, None, 0.0))
        if by is None:
            return remove_closed_heads(repaired(model, search(read_blocks(model, text), heads), text))
        criterion = CRITERIA[IN_ROUNDS.get(method, by)]
        if method in IN_ROUNDS:
            total = model.config.heads_total
            rounds = max(1, round((total - heads) / (ROUND_SHARE * total)))
            scores = score_in_rounds(model, heads, lambda m: criterion(m, tokens, rng), rounds, self.cell.scope)
        else:
            scores = criterion(model, tokens, rng)
        self.record["scores"] = [[float(f"{x:.4g}") for x in layer] for layer in scores]
        mask = keep_best(scores, heads, self.cell.scope)
        return remove_closed_heads(repaired(model, mask, text, repair) if repair else with_heads(model, mask))

    def gated(self, model: Transformer, changes: dict[str, Any], config: TrainConfig) -> Transformer:
        """Train with gates; return the model without closed heads. The cell's number of heads, if any, is met."""
        gate = dataclasses.replace(self.config.gate, target_heads=self.cell.heads, **changes)
        warmup = config.steps // 2 if gate.lam_warmup is None else gate.lam_warmup
        gated, objective = with_new_gates(model, gate, warmup)
        path = self.train(gated, config, "gate", objective)
        self.record["scores"] = self.log_alpha(gated, 4)
        if gate.distribution != "top-k":
            self.record["heads_shifted"] = hit_target(gated)
        self.record["gate_path"] = [
            {"step": point["step"], "log_alpha": [[round(x, 2) for x in layer] for layer in point["log_alpha"]]}
            for point in path[:-1]
        ]
        # The last point is where the gates ended, after the target was met.
        self.record["gate_path"].append({"step": config.steps, "log_alpha": self.log_alpha(gated, 3)})
        self.record["bits_per_character_gated"] = self.bits(gated, "valid")
        return remove_closed_heads(gated)

    def train(
        self, model: Transformer, config: TrainConfig, stage: str, objective: Objective | None = None
    ) -> list[dict[str, Any]]:
        """Train `model` in place for one stage; returns the objective's description of every `PATH_EVERY`th step."""
        segments = Segments(self.text.train, config.B, model.config.T, read=self.record["steps_total"])
        objective = objective or LanguageModelling()
        training = Training.start(model, segments, config, objective, self.generator(stage))
        path = []
        try:
            while True:
                if stage == "finetune" and training.step in self.cell.readings:
                    bits = {split: self.bits(model, split) for split in ("valid", "test")}
                    self.record.setdefault("readings", []).append({"step": training.step} | bits)
                if training.step >= config.steps:
                    break
                train_step(training)
                if training.step % PATH_EVERY == 0 or training.step == config.steps:
                    path.append({"step": training.step, **objective.describe(model)})
        except NotFiniteError as error:
            table = "gate_train" if stage == "gate" else stage
            raise NotFiniteError(
                f"step {training.step + 1} of stage {stage} gave numbers that are not finite; lower its "
                f"learning rate, say with --set {table}.lr={config.lr / 2:g}"
            ) from error
        self.record["steps_total"] += config.steps
        self.record.setdefault("bits_per_character_after", {})[stage] = self.bits(model, "valid")
        return path

    def log_alpha(self, model: Transformer, digits: int) -> list[list[float]]:
        """Return log_alpha of every gate, rounded, a list for each layer."""
        params = model.host_params()
        layers = (params[name] for name in gate_names(model.config.L))
        return [[round(float(x), digits) for x in layer] for layer in layers]

    def bits(self, model: Transformer, split: str) -> float | None:
        """Return bits per character on a split."""
        return evaluate(model, getattr(self.text, split), self.text.characters[split]).bits_per_character

    def measure(self, model: Transformer) -> dict[str, Any]:
        """Return the cell's record: size, computation, quality on both splits, and what `record` has collected."""
        *_, valid = self.record["bits_per_character_after"].values()
        quality = {"valid": valid, "test": self.bits(model, "test")}
        return {
            "heads": list(model.config.heads),
            "head_ids": [list(layer) for layer in model.config.head_ids],
            "heads_total": model.config.heads_total,
            "parameters": count_parameters(model.config),
            "multiply_adds_per_token": count_multiply_adds(model.config),
            "bits_per_character": quality,
            **self.record,
        }
