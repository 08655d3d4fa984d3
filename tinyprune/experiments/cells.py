"""A cell: one model trained, pruned to a number of heads, trained on, and measured. Cells need nothing of each other.

    baseline      config.train steps without gates                                        (one for each seed)
    a criterion   heads removed from the baseline, then gate_train + finetune steps       (`pruning.importance`)
    gates         gate_train steps with gates, closed heads removed, finetune steps       (`pruning.gates`)
    gates-rewound the heads that these gates chose, but the baseline's weights again, finetune steps
    unpruned      nothing removed, gate_train + finetune steps
    from scratch  train + gate_train steps with gates, or without most heads, from the very first, finetune steps

After the baseline every method has the same number of steps with the same learning rates. Heads are chosen by what the
training and the validation split say; the test split is read once, at the end.

A cell is plain data and its computation a pure function, so it can be sent anywhere. The baseline that it starts from
goes with it, as the bytes of a safetensors file.
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
from tinyprune.model.gating import gate_names
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import hit_target, with_new_gates
from tinyprune.pruning.importance import CRITERIA, keep_best, score_in_rounds, with_heads
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import LanguageModelling, Objective, Training, train_step

# How a method's gates differ from those that are configured. Voita et al. 2019 have soft gates, and no output scaling;
# nor have Li, Cotterell & Sachan 2021, whose k gates need no pressure.
GATES: dict[str, dict[str, Any]] = {
    "gates": {"objective": "task"},
    "gates-layerwise": {"objective": "layerwise"},
    "voita": {"hard": False, "output_scaling": False},
    "gumbel-top-k": {"distribution": "top-k", "output_scaling": False},
}
# Criteria that are asked again after every tenth of all heads, as Michel et al. 2019 do.
IN_ROUNDS = {"michel-iterative": "michel"}
ROUND_SHARE = 0.1
FROM_SCRATCH = "gates-from-scratch"
SMALL = "small-from-scratch"  # every layer with the same share of its heads, and no gates
# What these gates choose is removed from the baseline, whose weights the gate stage has not touched: are gates good at
# choosing, or is what they do to the weights?
REWOUND = {"gates-rewound": "gates"}
METHODS = (*CRITERIA, *IN_ROUNDS, *GATES, *REWOUND)
SCORE_TOKENS = 24_000  # of the validation split, that criteria read
REVISION = 1  # of what the methods do: another number makes all cells be computed anew
PATH_EVERY = 10  # steps between two points of a gate's path

# Numba's plainest threading layer ends the process when two threads call it at once.
ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Cell:
    """What is to be computed.

    Attributes:
        config: model, text, stages and seed. `config.gate.target_heads` is not looked at: `heads` says it.
        method: "baseline", "unpruned", `FROM_SCRATCH`, `SMALL` or one of `METHODS`.
        heads: how many stay, of all layers; None for a method that removes none.
        scope: for criteria, see `importance.keep_best`.
        backend: whose operations compute.
        digest: sha256 of the text, so that nobody computes the cell with another; None for any.
    """

    config: RunConfig
    method: str
    heads: int | None = None
    scope: str = "global"
    backend: str = "numba"
    digest: str | None = None

    def __post_init__(self) -> None:
        known = ("baseline", "unpruned", FROM_SCRATCH, SMALL, *METHODS)
        if self.method not in known:
            raise UsageError(f"method must be one of {', '.join(known)}; got {self.method!r}")
        if (self.heads is None) != (self.method in ("baseline", "unpruned")):
            raise UsageError(f"heads must be a number, except for baseline and unpruned; got {self.heads}")
        if self.heads is not None and not 0 <= self.heads <= self.config.model.heads_total:
            raise UsageError(f"heads must be between 0 and {self.config.model.heads_total}, got {self.heads}")

    @property
    def baseline(self) -> Cell | None:
        """The cell that this one starts from."""
        if self.method in ("baseline", FROM_SCRATCH, SMALL):
            return None
        return dataclasses.replace(self, method="baseline", heads=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: all that the result depends on, and nothing else."""
        config = self.config.to_dict()
        for stage in ("train", "gate_train", "finetune"):
            for name in ("evaluate_every", "checkpoint_every", "log_every"):
                config[stage].pop(name)
        if self.method in GATES or self.method in REWOUND or self.method == FROM_SCRATCH:
            # what `heads` and the method say instead
            for name in ("target_heads", "lam", *GATES.get(self.method, GATES["gates"])):
                config["gate"].pop(name, None)
        else:
            del config["gate"]
        if self.method == "baseline":
            del config["gate_train"], config["finetune"]
        own: dict[str, Any] = {"revision": REVISION, "method": self.method, "backend": self.backend, "config": config}
        own["digest"] = self.digest
        if self.heads is not None:
            own["heads"] = self.heads
        if self.method in CRITERIA or self.method in IN_ROUNDS:
            own["scope"] = self.scope
        return own

    @property
    def key(self) -> str:
        """A name for exactly this: cells with equal keys have equal results."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        heads = "" if self.heads is None else f" {self.heads} heads"
        return f"{self.config.model.kind} {self.method}{heads}, seed {self.config.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        record: plain values, see `measure`; what is kept of a study.
        checkpoint: the baseline's weights, as the bytes of a safetensors file; None for other cells.
    """

    record: dict[str, Any]
    checkpoint: bytes | None = None


def compute(cell: Cell, baseline: bytes | None = None) -> Outcome:
    """Compute a cell, in one thread: a machine is filled by computing as many cells as it has processors.

    Args:
        cell: what to compute.
        baseline: the checkpoint that `cell.baseline` came to.

    Raises:
        TinypruneError: naming the cell, if its training fails.
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
    """The tokenised text, kept for the next cell of this process. UsageError if its sha256 is another than `digest`."""
    return load_text(data, digest=digest)


class CellRun:
    """The computation of one cell: a text, and models on their way through the stages."""

    def __init__(self, cell: Cell, ops: Any) -> None:
        self.cell = cell
        self.config = cell.config
        self.ops = ops
        self.text = read_text(cell.config.data, cell.digest)
        self.record: dict[str, Any] = {"steps_total": 0}

    def run(self, baseline: bytes | None) -> Outcome:
        """All of it."""
        method, config = self.cell.method, self.config
        if method == "baseline":
            model = self.new_model()
            self.train(model, config.train, "train")
            return Outcome(self.measure(model), checkpoint_bytes(model))
        together = dataclasses.replace(config.train, steps=config.train.steps + config.gate_train.steps)
        if method == SMALL:
            new = self.new_model()
            mask = keep_best([np.zeros(H) for H in new.config.heads], self.cell.heads, "layer")
            model = remove_closed_heads(with_heads(new, mask))
            self.train(model, together, "train")
        elif method == FROM_SCRATCH:
            # gates as fast as in the gate stage, whose learning rate is another
            faster = config.gate.lr_multiplier * config.gate_train.lr / config.train.lr
            model = self.gated(self.new_model(), GATES["gates"] | {"lr_multiplier": faster}, together)
        else:
            if baseline is None:
                raise UsageError(f"{self.cell} needs the checkpoint of its baseline, got none")
            self.record["steps_total"] = config.train.steps
            model = Transformer(self.model_config, load_checkpoint_bytes(baseline), ops=self.ops)
            if method in GATES:
                model = self.gated(model, GATES[method], config.gate_train)
            elif method in REWOUND:
                head_ids = self.gated(model, GATES[REWOUND[method]], config.gate_train).config.head_ids
                whole = Transformer(self.model_config, load_checkpoint_bytes(baseline), ops=self.ops)
                mask = [np.isin(range(H), ids) for H, ids in zip(whole.config.heads, head_ids, strict=True)]
                model = remove_closed_heads(with_heads(whole, mask))
            else:
                model = self.pruned(model)
                self.train(model, config.gate_train, "gate")
        if self.cell.heads not in (None, sum(model.config.heads)):
            raise TinypruneError(f"{self.cell.heads} heads were asked for, {sum(model.config.heads)} stay")
        self.train(model, config.finetune, "finetune")
        return Outcome(self.measure(model))

    @property
    def model_config(self) -> ModelConfig:
        """The configured model, its vocabulary that of the text."""
        return dataclasses.replace(self.config.model, V=self.text.tokenizer.V)

    def generator(self, purpose: str) -> np.random.Generator:
        """Chance, from the seed: each purpose has its own, the same for every method."""
        purposes = ("init", "train", "gate", "finetune", "scores")
        return np.random.default_rng([self.config.seed, purposes.index(purpose)])

    def new_model(self) -> Transformer:
        """Before any training."""
        return Transformer(self.model_config, init_parameters(self.model_config, self.generator("init")), ops=self.ops)

    def pruned(self, model: Transformer) -> Transformer:
        """Without the heads that a criterion finds least important; whole if the method is "unpruned"."""
        method, heads = self.cell.method, self.cell.heads
        if heads is None:
            return model
        rng, tokens = self.generator("scores"), self.text.valid[:SCORE_TOKENS]
        criterion = CRITERIA[IN_ROUNDS.get(method, method)]
        if method in IN_ROUNDS:
            total = model.config.heads_total
            rounds = max(1, round((total - heads) / (ROUND_SHARE * total)))
            scores = score_in_rounds(model, heads, lambda m: criterion(m, tokens, rng), rounds, self.cell.scope)
        else:
            scores = criterion(model, tokens, rng)
        self.record["scores"] = [[float(f"{x:.4g}") for x in layer] for layer in scores]
        return remove_closed_heads(with_heads(model, keep_best(scores, heads, self.cell.scope)))

    def gated(self, model: Transformer, changes: dict[str, Any], config: TrainConfig) -> Transformer:
        """Trained with gates until exactly so many heads are open, and without the others then."""
        gate = dataclasses.replace(self.config.gate, target_heads=self.cell.heads, **changes)
        warmup = config.steps // 2 if gate.lam_warmup is None else gate.lam_warmup
        gated, objective = with_new_gates(model, gate, warmup)
        path = self.train(gated, config, "gate", objective)
        self.record["scores"] = self.log_alpha(gated, 4)
        if gate.distribution == "hard-concrete":
            self.record["heads_shifted"] = hit_target(gated)
        self.record["gate_path"] = [
            {"step": point["step"], "log_alpha": [[round(x, 2) for x in layer] for layer in point["log_alpha"]]}
            for point in path[:-1]
        ]
        # the last point is where the gates ended, settled
        self.record["gate_path"].append({"step": config.steps, "log_alpha": self.log_alpha(gated, 3)})
        self.record["bits_per_character_gated"] = self.bits(gated, "valid")
        return remove_closed_heads(gated)

    def train(
        self, model: Transformer, config: TrainConfig, stage: str, objective: Objective | None = None
    ) -> list[dict[str, Any]]:
        """Train `model` in place for one stage; returns the objective's description of every `PATH_EVERY`th step."""
        segments = Segments(self.text.train, config.B, model.config.T)
        objective = objective or LanguageModelling()
        training = Training.start(model, segments, config, objective, self.generator(stage))
        path = []
        try:
            while training.step < config.steps:
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
        """Of every gate, a list for each layer."""
        params = model.host_params()
        layers = (params[name] for name in gate_names(model.config.L))
        return [[round(float(x), digits) for x in layer] for layer in layers]

    def bits(self, model: Transformer, split: str) -> float | None:
        """Bits per character of a split."""
        return evaluate(model, getattr(self.text, split), self.text.characters[split]).bits_per_character

    def measure(self, model: Transformer) -> dict[str, Any]:
        """The cell's record: size, computation, quality on both splits, and what was noted on the way."""
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


def checkpoint_bytes(model: Transformer) -> bytes:
    """The weights as a safetensors file."""
    return safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in model.host_params().items()})


def load_checkpoint_bytes(content: bytes) -> dict[str, Any]:
    """The weights that `checkpoint_bytes` wrote."""
    return safetensors.numpy.load(content)
