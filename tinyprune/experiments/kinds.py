"""The kinds of models that studies compare: equally many parameters, and settings that were found alike for each."""

from __future__ import annotations

import dataclasses
from typing import Any

from tinyprune.config import ModelConfig, RunConfig, of_kind

ATTENTION, NETWORKS, XL = "all-attention", "head-networks", "transformer-xl"
# Persistent vectors, and the feed-forward block in their place, are four times as many as D, the paper's proportion:
# they are then 6 of 10 parameters of a layer.
CHANGES = {"model.N": 512, "model.persistent": "softmax", "model.dropout": 0.0, "model.dropout_attention": 0.0}
# The best of 15 trials each on the validation split, see `tinyprune experiment tuning`.
SETTINGS: dict[str, dict[str, float]] = {
    ATTENTION: {"lr": 4e-3, "gain": 4.0, "decay": 0.01},
    NETWORKS: {"lr": 4e-3, "gain": 2.0, "decay": 0.1},
    XL: {"lr": 2e-3, "gain": 2.0, "decay": 0.1},
}


def models(given: ModelConfig) -> dict[str, ModelConfig]:
    """Return what is compared, by name, with as many parameters as the given model.

    A head that has a network owns N / H of the feed-forward block's units in place of its persistent vectors.
    """
    attention, xl = (dataclasses.replace(given, kind=kind, **of_kind(given, kind)) for kind in (ATTENTION, XL))
    networks = dataclasses.replace(attention, persistent="stream", N=max(round(attention.N / given.H), 1))
    return {ATTENTION: attention, NETWORKS: networks, XL: xl}


def runs(config: RunConfig) -> dict[str, RunConfig]:
    """Return a run of each kind of model, with its own settings."""
    kinds = models(config.model).items()
    return {kind: with_settings(dataclasses.replace(config, model=model), **SETTINGS[kind]) for kind, model in kinds}


def with_settings(config: RunConfig, lr: float, gain: float, decay: float) -> RunConfig:
    """Return a run with another learning rate, range of initial weights and weight decay.

    The other learning rates keep their proportion to the first stage's.
    """
    factor = lr / config.train.lr
    changes: dict[str, Any] = {"model": dataclasses.replace(config.model, init_gain=gain)}
    for stage in ("train", "gate_train", "finetune"):
        given = getattr(config, stage)
        rates = {name: float(f"{getattr(given, name) * factor:.6g}") for name in ("lr", "lr_min")}
        changes[stage] = dataclasses.replace(given, weight_decay=decay, **rates)
    return dataclasses.replace(config, **changes)
