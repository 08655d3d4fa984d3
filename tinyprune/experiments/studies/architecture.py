"""Architecture: All-attention, heads with networks and Transformer-XL with as many parameters, all pruned alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tinyprune.config import RunConfig, of_kind
from tinyprune.errors import UsageError
from tinyprune.experiments.methods import UNPRUNED
from tinyprune.experiments.pictures import plot_architecture
from tinyprune.experiments.results import differences_at_equal_size
from tinyprune.experiments.study import Entry, Finished, Picture, Plan, Study
from tinyprune.tables import Record

ATTENTION, NETWORKS, XL = "all-attention", "head-networks", "transformer-xl"
# Persistent vectors, and the feed-forward block in their place, are four times as many as D, the paper's proportion:
# they are then 6 of 10 parameters of a layer.
CHANGES = {"model.N": 512, "model.persistent": "softmax", "model.dropout": 0.0, "model.dropout_attention": 0.0}
# The best of 15 trials each on the validation split, see data/results/tuning-pydoc.
SETTINGS: dict[str, dict[str, float]] = {
    ATTENTION: {"lr": 4e-3, "gain": 4.0, "decay": 0.01},
    NETWORKS: {"lr": 4e-3, "gain": 2.0, "decay": 0.1},
    XL: {"lr": 2e-3, "gain": 2.0, "decay": 0.1},
}
# With them the paper's pair: All-attention without 43 % of its heads, Transformer-XL without 25 %.
SHARES = (0.9, 0.75, 0.5625, 0.3, 0.1)


def runs(config: RunConfig) -> dict[str, RunConfig]:
    """Return a run of each kind of model, with its settings and as many parameters as the given model.

    A head that has a network owns N / H of the feed-forward block's units in the place of N persistent vectors.
    """
    given = config.model
    attention, xl = (dataclasses.replace(given, kind=kind, **of_kind(given, kind)) for kind in (ATTENTION, XL))
    networks = dataclasses.replace(attention, persistent="stream", N=max(round(attention.N / given.H), 1))
    models = {ATTENTION: attention, NETWORKS: networks, XL: xl}
    return {kind: with_settings(dataclasses.replace(config, model=models[kind]), **SETTINGS[kind]) for kind in models}


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


def entries(plan: Plan) -> list[Entry]:
    """Models of every kind, with all their heads and pruned. Raises UsageError for more than one method."""
    if len(plan.methods) > 1:
        raise UsageError(f"architecture prunes by one method, got {', '.join(plan.methods)}")
    made = []
    for kind, run in runs(plan.config).items():
        for config in plan.configs(run):
            made.append(plan.entry(kind, config, UNPRUNED))
            made += [plan.entry(kind, config, plan.methods[0], share) for share in plan.shares]
    return made


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare the kinds at equal sizes."""
    rows = done.tables["results"]
    found = [r for reference in (ATTENTION, NETWORKS) for r in differences_at_equal_size(rows, XL, reference)]
    return {"comparison": found}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw quality against size and time."""
    caption = "Quality of the architectures against parameters, multiply-adds and time"
    yield "architecture", caption, plot_architecture(done.tables["results"])


STUDY = Study(entries, tables, pictures, changes=CHANGES, shares=SHARES, methods=("gates",), equal="parameters")
