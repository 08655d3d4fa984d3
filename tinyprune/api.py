"""The whole method as functions, for notebooks and scripts: the same stages, settings and bits as the command line,
where that reads the run's text alone.

    import tinyprune as tp

    text = tp.load_text("pydoc")                              # or a file, or a folder
    model = tp.new_model(text, L=4, H=8)
    tp.train(model, text, steps=900)
    gated = tp.gate(model, text, target_heads=16)
    small = tp.prune(gated)
    tp.finetune(small, text, steps=200)
    tp.save(small, "runs/mine")                               # tinyprune eval runs/mine
    print(tp.generate(tp.load("runs/mine"), "The import statement", tokens=200))
    log_p = small.log_p(text.test[None, :64])                 # NumPy, (1, 64, V)

Settings that are not given are those of the preset `tiny`; `tinyprune list settings` explains all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinyprune.config import ModelConfig, TrainConfig, load_preset, to_toml
from tinyprune.config.base import check_range
from tinyprune.data import Text
from tinyprune.data.corpus import SPLITS
from tinyprune.errors import UsageError, typed
from tinyprune.io.files import checked_path
from tinyprune.io.progress import progress_bar
from tinyprune.kernels.backend import default_backend, get_backend
from tinyprune.method.prune import choose, heal
from tinyprune.method.recipe import Generators, Recipe, Stage, Watch
from tinyprune.method.remove import remove_closed_heads as prune  # the third stage
from tinyprune.method.texts import Texts
from tinyprune.model.counting import training_bytes
from tinyprune.model.generation import generate as generated
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Origin, Transformer
from tinyprune.runs.directory import STAGES, RunDirectory, load_model, model_metadata
from tinyprune.runs.run import check_memory
from tinyprune.training.checkpoints import save_checkpoint
from tinyprune.training.evaluation import evaluate as evaluated
from tinyprune.training.step import LanguageModelling
from tinyprune.training.warmup import announced

Callback = Callable[[int, dict[str, float]], object]  # of the steps made so far, and the losses of the last one

__all__ = ["evaluate", "finetune", "gate", "generate", "load", "new_model", "prune", "save", "train"]


@typed
def new_model(text: Text, seed: int = 0, backend: str | None = None, **sizes: Any) -> Transformer:
    """Return a model with new weights for a text.

    Args:
        text: see `load_text`.
        seed: of the weights.
        backend: name of the engine, see `get_backend`; None for the compiled one where Numba is installed.
        sizes: others of `ModelConfig` than the preset `tiny` has, such as L=6, D=192.

    Raises:
        UsageError: for a setting that is unknown or out of range, another backend, or more memory than there is.
    """
    check_range("seed", seed, 0, None)
    known = load_preset("tiny").model.to_dict() | {"V": text.tokenizer.V}
    config = ModelConfig.from_dict(known | sizes)
    ops = get_backend(backend or default_backend())
    check_memory("training", training_bytes(config, 1), config, 1, ops)
    params = init_parameters(config, np.random.default_rng([seed, 0]))
    return Transformer(config, params, None, ops, Origin(text.tokenizer, text.data, text.digest))


@typed
def train(
    model: Transformer,
    text: Text,
    steps: int | None = None,
    *,
    seed: int = 0,
    callback: Callback | None = None,
    **settings: Any,
) -> Transformer:
    """Train a model in place; a progress bar shows how far it is.

    Args:
        model: see `new_model`; without gates.
        text: see `load_text`; its tokenizer must be the model's.
        steps: updates; None for those of the preset `tiny`.
        seed: of dropout's noise.
        callback: called after each step with the number of steps so far and the losses of this step, nats by name, as
            in `callback(100, {"loss": 1.94})`. It may evaluate the model. What it raises stops the training, and the
            model keeps its last step.
        settings: others of `TrainConfig`, such as lr=2e-3, B=16.

    Returns:
        the model itself.

    Raises:
        UsageError: for a setting that is unknown or out of range, more memory than there is, a text that is too short
            or has another tokenizer, or a model with gates, which would move.
        NotFiniteError: if a step gives numbers that are not finite.
    """
    config, texts = _settings("train", steps, settings), _texts(model, text)
    segments = texts.segments("train", config, model.config.T)
    rng = _generators(seed)("train")
    _Bar(callback).fit(Stage("train", model, segments, config, LanguageModelling(), rng))
    texts.read_on(config)
    model.origin = Origin(text.tokenizer, text.data, text.digest, texts.read)
    return model


@typed
def gate(
    model: Transformer,
    text: Text,
    *,
    target_heads: int | None = None,
    target_parameters: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    **settings: Any,
) -> Transformer:
    """Train a copy of a model with a gate on every head.

    Args:
        model: without gates; it is not modified.
        text: see `train`.
        target_heads: how many heads stay open, exactly. Without a target the L0 loss has the weight `lam`.
        target_parameters: or the share of the parameters, embedding apart, that stays open.
        steps, seed, callback: see `train`. The losses have "l0", too, and its weight, "lam".
        settings: others of `ChooseConfig`, `GateConfig` and `TrainConfig`, such as units=32 for gates on blocks of
            feed-forward units, or by="michel" to train none.

    Returns:
        the gated model, see `Transformer.gates`.

    Raises:
        UsageError: as `train`, or if no model of that size is left.
        NotFiniteError: if a step gives numbers that are not finite.
    """
    preset = load_preset("tiny")
    tables: dict[str, dict[str, Any]] = {"choose": {}, "gate": {}, "gate_train": {}}
    for name, value in settings.items():
        for table in tables:
            if name in {field.name for field in dataclasses.fields(getattr(preset, table))}:
                tables[table][name] = value
                break
        else:
            tables["gate_train"][name] = value  # which is refused with a hint
    config = _settings("gate_train", steps, tables.pop("gate_train"))
    options = {f"{table}.{k}": value for table, given in tables.items() for k, value in given.items()}
    options["choose.target_heads"] = target_heads
    if target_parameters is not None:
        options |= {"choose.target_share": target_parameters, "choose.price": "parameters"}
    recipe = dataclasses.replace(Recipe.of(preset.with_options(options)), gate_train=config)
    texts = _texts(model, text)
    gated = choose(model, recipe, texts, _generators(seed), _Bar(callback))
    gated.origin = Origin(text.tokenizer, text.data, text.digest, texts.read)
    return gated


@typed
def finetune(
    model: Transformer,
    text: Text,
    steps: int | None = None,
    *,
    teacher: Transformer | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    **settings: Any,
) -> Transformer:
    """Train a pruned model on, in place; see `train`. With a `teacher`, half of the loss is the divergence from it."""
    share = settings.pop("distill", 0.5 if teacher else 0.0)
    config = _settings("heal", steps, settings | {"distill": share})
    texts = _texts(model, text)
    if teacher is not None:
        _check_tokenizer("the teacher", teacher, text)
    heal(model, teacher, "finetune", config, texts, _generators(seed), _Bar(callback))
    model.origin = Origin(text.tokenizer, text.data, text.digest, texts.read)
    return model


@typed
def evaluate(model: Transformer, text: Text, split: str = "test") -> float | None:
    """Return bits per character on a split of a text, train, valid or test; None if its words became `<unk>`.

    Raises UsageError for another split, or a text with another tokenizer than the model's.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    _check_tokenizer("the model", model, text)
    return evaluated(model, getattr(text, split), text.characters[split]).bits_per_character


@typed
def generate(
    model: Transformer,
    prompt: str,
    tokens: int = 200,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """Return the prompt and its continuation by a model that knows its tokenizer, see `model.generation.generate`."""
    check_range("seed", seed, 0, None)
    tokenizer = _origin(model).tokenizer
    ids, rng = tokenizer.encode(prompt), np.random.default_rng(seed)
    new = generated(model, ids, tokens, rng, temperature=temperature, top_k=top_k)
    return tokenizer.decode([*ids, *new])


@typed
def save(model: Transformer, path: str | Path) -> Path:
    """Write a model to a .safetensors file, or as a stage of a run to a directory, where the command line goes on.

    Args:
        model: with the text that it was made for, as from `new_model` or `load`.
        path: it is the stage gate if it has gates, prune if it has lost heads or blocks, and train otherwise.

    Returns:
        the path of the checkpoint.

    Raises:
        UsageError: if the model does not know its text, or the directory has a later stage or a model of other sizes.
        SaveError: if the file cannot be written.
    """
    origin, config, path = _origin(model), model.config, checked_path("path", path)
    stage = "train"
    if model.gate:
        stage = "gate"
    elif {"heads", "blocks"} & config.to_dict().keys():
        stage = "prune"
    metadata = model_metadata(model, origin.tokenizer, origin.data, origin.digest)
    metadata |= {"stage": stage, "step": 0, "finished": True, "metrics_length": 0}
    metadata["read"] = origin.read
    tensors = {f"params.{name}": x for name, x in model.host_params().items()}
    if path.suffix == ".safetensors":
        save_checkpoint(path, tensors, metadata)
        return path
    directory = RunDirectory(path)
    with directory.locked():
        whole = dataclasses.replace(config, heads=(), head_ids=(), blocks=(), block_ids=())
        if not directory.started:
            run = dataclasses.replace(load_preset("tiny"), model=whole, data=origin.data)
            directory.write("config.toml", to_toml(run.to_dict()))
        for later in STAGES[STAGES.index(stage) + 1 :]:
            if directory.checkpoint(later).exists():
                raise UsageError(f"path {path} has stage {later} already; give another directory")
        if dataclasses.replace(directory.read_config().model, V=config.V) != whole:
            what = "a run of a model of other sizes"
            raise UsageError(f"path {path} has {what}; give another directory")
        save_checkpoint(directory.checkpoint(stage), tensors, metadata)
    return directory.checkpoint(stage)


@typed
def load(path: str | Path, stage: str | None = None, backend: str | None = None) -> Transformer:
    """Read a model from a checkpoint, or from a run's directory: of its latest stage, or the one that is named.

    Raises:
        UsageError: if there is none.
        CheckpointError: if it cannot be read.
    """
    path = checked_path("path", path)
    if stage not in (None, *STAGES):
        raise UsageError(f"stage must be one of {', '.join(STAGES)}; got {stage!r}")
    if path.is_dir():
        directory = RunDirectory(path)
        path = directory.checkpoint(stage or directory.latest_stage())
    saved = load_model(path, get_backend(backend or default_backend()))
    read = saved.metadata.get("read")
    saved.model.origin = Origin(saved.tokenizer, saved.data, saved.digest, read)
    return saved.model


def _settings(table: str, steps: int | None, settings: dict[str, Any]) -> TrainConfig:
    """Return the settings of a stage: the preset's, and those that are given."""
    known = getattr(load_preset("tiny"), table).to_dict()
    if steps is not None:
        known["steps"] = steps
    return TrainConfig.from_dict(known | settings)


def _texts(model: Transformer, text: Text) -> Texts:
    """Return what a stage reads, from where the model's last stage has stopped. Raises UsageError if it has gates."""
    _check_tokenizer("the model", model, text)
    if model.gate is not None:
        raise UsageError(
            "the model has gates, which training would move, and so open and close heads; call prune first"
        )
    return Texts(text, read=None if model.origin is None else model.origin.read)


def _check_tokenizer(name: str, model: Transformer, text: Text) -> None:
    """Raise UsageError if a text has other tokens than a model was made for, or as many that are others."""
    theirs, own = text.tokenizer.V, model.config.V
    if theirs != own:
        raise UsageError(f"text has a vocabulary of {theirs} tokens, {name} one of {own}")
    if model.origin is not None and model.origin.tokenizer.to_dict() != text.tokenizer.to_dict():
        how = "read it with load_text(corpus, model.origin.tokenizer)"
        raise UsageError(f"text has another tokenizer than {name}, though as many tokens; {how}")


def _generators(seed: int) -> Generators:
    """Return the generators of the stages, as a run has them."""
    check_range("seed", seed, 0, None)
    numbers = {name: i for i, name in enumerate(("init", *STAGES))}
    numbers["scores"] = numbers["gate"]
    return lambda name: np.random.default_rng([seed, numbers[name]])


class _Bar(Watch):
    """Shows how far a stage is, and tells a caller's function."""

    def __init__(self, callback: Callback | None) -> None:
        self.callback = callback

    def fit(self, stage: Stage) -> None:
        """See `Watch`."""
        name, style = stage.name, {"total": stage.config.steps, "unit": "step"}
        model, B, gate = stage.model.config, stage.config.B, stage.model.gate
        needed = training_bytes(model, B, frozen=gate is not None and gate.frozen)
        check_memory(f"stage {name}", needed, model, B, stage.model.ops)
        with announced(stage.model.ops, name), progress_bar(desc=name, **style) as bar:
            for step, losses in stage.steps():
                bar.update(step - bar.n)
                if self.callback is not None and step:
                    self.callback(step, losses)
        stage.finish(stage.model)


def _origin(model: Transformer) -> Origin:
    """Return the text that a model was made for. Raises UsageError if it does not know."""
    if model.origin is None:
        needed = "make it with new_model(text), or load it"
        raise UsageError(f"the model does not know its tokenizer; {needed}")
    return model.origin
