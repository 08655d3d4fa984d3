"""Make a run of a pretrained model.

The run's baseline is the model as it was read, as if it had been trained here: gate, prune, finetune and all commands
that use a model take it from there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tinyprune.config import RunConfig, load_preset, to_toml
from tinyprune.data import load_text
from tinyprune.errors import UsageError
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import Pretrained, find_model
from tinyprune.pretrained.gguf import block_type
from tinyprune.runs.directory import STAGES, RunDirectory, model_metadata
from tinyprune.training.checkpoints import save_checkpoint


def check_new(directory: RunDirectory) -> None:
    """Raise UsageError if there is a run."""
    if directory.started or any(directory.checkpoint(stage).exists() for stage in STAGES):
        raise UsageError(f"{directory.path} holds a run already; give another directory")


def import_run(
    pretrained: Pretrained, directory: RunDirectory, config: RunConfig, options: dict[str, Any]
) -> RunConfig:
    """Write a run's config.toml and the checkpoint of its first stage; return the configuration.

    Args:
        pretrained: the model.
        directory: of the run, without one.
        config: settings of all but the model, and T: a model that can read more at once has segments of T.
        options: of the command line, by their names in the configuration; of the model only T may be among them.

    Raises:
        UsageError: if there is a run, or if options do not fit the model or the text does not.
        SaveError: if a file cannot be written.
    """
    check_new(directory)
    for name in options:
        if name == "data.tokenizer" or (name.startswith("model.") and name != "model.T"):
            raise UsageError(f"{name} is that of the model in the file; of these settings only model.T can be chosen")
    longest = pretrained.config.T
    T = options.get("model.T", min(config.model.T, longest))
    if isinstance(T, int) and longest < T:
        raise UsageError(f"model.T must be at most {longest}, as many positions as the model was trained with, got {T}")
    config = dataclasses.replace(config, model=dataclasses.replace(pretrained.config, T=T))
    usual = config.heal == load_preset("pretrained").heal and "heal.optimizer" not in options
    if usual and find_model(pretrained.file).is_file() and (kind := block_type(pretrained.params)):
        # repair and healing keep to what the file can say
        rule = "scales-offsets" if kind[-1] == "1" else "scales"
        options = {"repair.type": kind, "heal.optimizer": rule, "heal.lr": 3e-4} | options
    config = config.with_options(options | {"data.tokenizer": "bpe"})
    params = dict(pretrained.params)
    if "positions" in params:
        params["positions"] = params["positions"][:T].copy()
    model = Transformer(config.model, params)
    text = load_text(config.data, pretrained.tokenizer)
    metadata = model_metadata(model, pretrained.tokenizer, config.data, text.digest)
    metadata["positions"] = longest  # for an export: segments of T are the run's, not the model's
    metadata |= {"stage": "train", "step": 0, "finished": True, "metrics_length": 0}
    metadata["source"] = pretrained.name
    metadata["file"] = pretrained.file  # for an export that slices its quantised blocks
    tensors = {f"params.{name}": x for name, x in params.items()}
    save_checkpoint(directory.checkpoint("train"), tensors, metadata)
    directory.write("config.toml", to_toml(config.to_dict()))
    return config
