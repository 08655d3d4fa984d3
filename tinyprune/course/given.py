"""The trained language model that later assignments start from, with heads to gate and to remove.

    model = given.trained()
    batches = model.batches(steps=100)
    loss, dgate = batches.loss_and_gate_gradients(np.ones((model.L, model.H)))
    model.bits(model.parameters)                                   # bits per character on held-out text
    model.random_heads(keep=6, steps=100, seed=0)                  # the same after random heads were removed

It stays in the tests' process: an answer gets numbers, and functions that it can call.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ChooseConfig, DataConfig, ModelConfig, TrainConfig
from tinyprune.data import Segments, Text, load_text
from tinyprune.io.files import cache_directory, locked, replace_file
from tinyprune.io.progress import progress_bar
from tinyprune.kernels.backend import default_backend, get_backend
from tinyprune.method.prune import prune
from tinyprune.method.recipe import Recipe, Watch
from tinyprune.method.texts import Texts
from tinyprune.model.parameters import Parameters, init_parameters, layer_parameters, take_heads
from tinyprune.model.transformer import Memory, Transformer
from tinyprune.ops.engine import Engine
from tinyprune.training.checkpoints import load_checkpoint, save_checkpoint
from tinyprune.training.evaluation import evaluate
from tinyprune.training.optimizers import Optimizer, parameter_groups
from tinyprune.training.step import LanguageModelling, training_steps
from tinyprune.training.warmup import announced

MODEL = ModelConfig(kind="all-attention", L=3, D=64, H=4, persistent="stream", N=32, init_gain=2.0, T=64, M=64)
TRAIN = TrainConfig(steps=600, B=16, lr=8e-3, lr_min=8e-4, weight_decay=0.1, warmup=50)
HELD_OUT = 6_000  # characters of the test split, which take less than a tenth of a second
# How random heads are healed: by the steps of Adam that answers have, too.
HEAL = TrainConfig(B=16, lr=3e-3, schedule="constant", weight_decay=0.0, clip=0.0)


class BudgetUsed(ValueError):
    """This is raised once all allowed training steps are used."""


def trained() -> GivenModel:
    """Return the trained model, which is kept in the cache folder (`tinyprune.io.files`).

    The first call on a machine trains it, which takes some seconds; a concurrent call waits for the first.
    """
    folder = cache_directory() / f"course-python{platform.python_version()}"  # whose documentation is the text
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    ops, text = get_backend(default_backend()), load_text(DataConfig(corpus="pydoc"))
    config = dataclasses.replace(MODEL, V=text.tokenizer.V)
    about = {"made from": f"{config} {TRAIN} {text.digest}"}
    with locked(folder / ".lock", wait=True):
        if not (path.exists() and load_checkpoint(path)[1] == about):
            save_checkpoint(path, train(config, text, ops).host_params(), about)
    return GivenModel(Transformer(config, load_checkpoint(path)[0], ops=ops), text, folder)


def train(config: ModelConfig, text: Text, ops: Engine) -> Transformer:
    """Return a model trained on `text`."""
    model = Transformer(config, init_parameters(config, np.random.default_rng([0, 0])), ops=ops)
    segments = Segments(text.train, TRAIN.B, config.T)
    steps = training_steps(model, segments, TRAIN, LanguageModelling(), np.random.default_rng([0, 1]))
    # One thread is as fast at this size, and threads do not wait for each other while many submissions are marked.
    with ops.threads(1), announced(ops, "the given model"):
        for _ in progress_bar(steps, total=TRAIN.steps + 1, desc="the given model", unit="step"):
            pass
    return model


@dataclasses.dataclass(frozen=True)
class GivenModel:
    """A trained language model of head networks, all heads open, without gates."""

    model: Transformer  # as it was trained
    text: Text
    path: Path  # the directory in which it is kept

    @property
    def L(self) -> int:
        """Return the number of layers."""
        return self.model.config.L

    @property
    def H(self) -> int:
        """Return the number of heads in each layer."""
        return self.model.config.H

    @property
    def Dh(self) -> int:
        """Return the width of a head."""
        return self.model.config.Dh

    @property
    def parameters(self) -> Parameters:
        """Return a copy of all parameters: name, such as `layers.0.Wq`, → float32 array."""
        return {name: value.copy() for name, value in self.model.params.items()}

    def with_parameters(self, parameters: Parameters) -> Transformer:
        """Return the model with these parameters. A layer may have fewer heads: the rows of its Wo tell how many.

        Raises ValueError if they do not fit together.
        """
        config = self.model.config
        heads = []
        for i in range(config.L):
            name = f"layers.{i}.Wo"
            rows = len(parameters[name]) if name in parameters else -1
            if rows % config.Dh or not 0 <= rows <= config.H * config.Dh:
                raise ValueError(f"params[{name!r}] must have {config.Dh} rows for each head, got {rows}")
            heads.append(rows // config.Dh)
        ids = tuple(tuple(range(n)) for n in heads)
        config = dataclasses.replace(config, heads=tuple(heads), head_ids=ids)
        given = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
        return Transformer(config, given, ops=self.model.ops)

    def gated(self, gate: NDArray) -> Parameters:
        """Return the trained parameters with head h of layer l multiplied by gate[l, h].

        The gate is multiplied into the head's rows of Wo and into the values of its network. It includes an output
        scaling, if there is one. Raises ValueError if it is not (L, H) or not finite.
        """
        gate = np.asarray(gate, np.float32)
        if gate.shape != (self.L, self.H) or not np.isfinite(gate).all():
            raise ValueError(f"gate must be finite and of shape ({self.L}, {self.H}), got {gate.shape}")
        parameters = dict(self.model.params)
        for i, row in enumerate(gate):
            Wo, pv = f"layers.{i}.Wo", f"layers.{i}.net.pv"
            parameters[Wo] = parameters[Wo] * np.repeat(row, self.Dh)[:, None]
            parameters[pv] = parameters[pv] * row[:, None, None]
        return parameters

    def bits(self, parameters: Parameters) -> float:
        """Return bits per character on held-out text, the beginning of the test split; one token is one character."""
        held_out = self.text.test[:HELD_OUT]
        with self.model.ops.threads(1):
            return float(evaluate(self.with_parameters(parameters), held_out, len(held_out)).bits_per_character)

    def batches(self, steps: int, seed: int = 0) -> Batches:
        """Return the training text as batches for so many steps, others for each seed."""
        return Batches(self, steps, seed)

    def random_heads(self, keep: int, steps: int, seed: int) -> float:
        """Return bits per character of `keep` heads that a seed draws, after `steps` steps on the batches of that seed.

        The first call on a machine computes it and keeps it beside the model.
        """
        weights = b"".join(value.tobytes() for value in self.model.params.values())
        asked = f"{keep} {steps} {seed} {HEAL}".encode() + weights
        path = self.path / f"random-heads-{hashlib.sha256(asked).hexdigest()[:16]}.json"
        if path.exists():
            return json.loads(path.read_bytes())
        training = dataclasses.replace(HEAL, steps=steps)
        recipe = Recipe(ChooseConfig(by="random", target_heads=keep), heal={"finetune": training})
        noise = {name: np.random.default_rng([seed, i]) for i, name in enumerate(("scores", "finetune"))}
        texts = Texts(self.text, read=(training.B, seed * steps))
        with self.model.ops.threads(1):
            smaller = prune(self.model, recipe, texts, noise.__getitem__, Watch())
            bits = float(evaluate(smaller, self.text.test[:HELD_OUT], HELD_OUT).bits_per_character)
        replace_file(path, json.dumps(bits).encode())
        return bits


def remove_heads(parameters: Parameters, kept: Sequence[Sequence[int]], Dh: int) -> Parameters:
    """Return new arrays with only the heads `kept`, a list of head numbers for each layer."""
    smaller = dict(parameters)
    for i, heads in enumerate(kept):
        layer = take_heads(layer_parameters(parameters, i), heads, Dh)
        smaller |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    return {name: np.array(value) for name, value in smaller.items()}


def adam_step(
    parameters: Parameters, grads: Parameters, state: Optimizer | None, lr: float
) -> tuple[Parameters, Optimizer]:
    """Return new parameters after a step of Adam, and the state for the next step.

    `parameters` are not modified; `state` of the previous step is updated, None for the first.
    """
    state = state or Optimizer(TrainConfig(), parameter_groups(parameters, 0.0))
    moved = {name: np.array(value, np.float32, order="C") for name, value in parameters.items()}
    state.step(moved, {name: np.asarray(grad, np.float32) for name, grad in grads.items()}, lr)
    return moved, state


class Batches:
    """A limited number of training steps on successive batches: `used` of `steps` have been made."""

    def __init__(self, given: GivenModel, steps: int, seed: int = 0) -> None:
        self.given, self.steps, self.used, self.first = given, steps, 0, seed * steps
        self._segments = Segments(given.text.train, 16, given.model.config.T)
        self._memory: Memory | None = None

    def loss_and_gradients(self, parameters: Parameters) -> tuple[float, Parameters]:
        """Return the loss on the next batch, in nats per character, and its gradients by name.

        Raises:
            BudgetUsed: if all steps are used.
            ValueError: if the parameters do not fit together.
        """
        if self.used == self.steps:
            raise BudgetUsed(f"all {self.steps} steps are used")
        model = self.given.with_parameters(parameters)
        ids, targets, fresh = self._segments.batch(self.first + self.used)
        self.used += 1
        with model.ops.threads(1):
            loss, self._memory, cache = model.loss(ids, targets, None if fresh else self._memory)
            return float(loss), model.backward(1.0, cache)

    def loss_and_gate_gradients(self, gate: NDArray) -> tuple[float, NDArray]:
        """Return the trained model's loss on the next batch, its heads multiplied by `gate` (L, H), and dgate (L, H).

        A gate multiplies its head's rows of Wo and the values of its network, so its gradient is the sum of
        dWo · Wo over these rows, and of dpv · pv over these values.
        """
        given = self.given
        loss, grads = self.loss_and_gradients(given.gated(gate))
        dgate = np.zeros((given.L, given.H))
        for i in range(given.L):
            for name in (f"layers.{i}.Wo", f"layers.{i}.net.pv"):
                product = grads[name] * given.model.params[name]
                dgate[i] += product.reshape(given.H, -1).sum(1)
        return loss, dgate
