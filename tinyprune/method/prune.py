"""The method, on one page: choose what stays, remove the rest, repair what stays, heal it.

    1. choose   train a gate on every part of the whole model under the L0 loss, or score the parts by a criterion
    2. remove   take the closed parts out, for good
    3. repair   fit what stays to what the whole model computes, by least squares
    4. heal     train what stays, on the text and perhaps on the whole model's predictions

A part is a head, or a block of feed-forward units (`model.parts`). The paper's method has gates, no repair, and heals
without the whole model (Shim et al. 2021). Runs, the functions of `tinyprune`, studies and the course call this file.
"""

from __future__ import annotations

from functools import partial

from tinyprune.config import RepairConfig, TrainConfig
from tinyprune.method.choose import chosen_by_scores
from tinyprune.method.gates import hit_target, in_parts, open_parts, with_gates
from tinyprune.method.masks import with_parts
from tinyprune.method.recipe import Generators, Recipe, Stage, Watch
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import refitted, refitted_at_once
from tinyprune.method.texts import Texts
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained.gguf import rounded
from tinyprune.training.distillation import Distillation
from tinyprune.training.step import LanguageModelling, Objective


def prune(whole: Transformer, recipe: Recipe, texts: Texts, rng: Generators, watch: Watch) -> Transformer:
    """Return a smaller model.

    Args:
        whole: a trained model without gates; it is not modified.
        recipe: the settings.
        texts: what gates, criteria, repair and healing read; `Texts.read` moves on.
        rng: gives the generator of each stage.
        watch: saves, shows or counts; `Watch()` does nothing.

    Raises:
        UsageError: if the recipe does not fit the model, or a text is too short.
        NotFiniteError: if a training step gives numbers that are not finite.
    """
    gated = choose(whole, recipe, texts, rng, watch)
    small = remove_closed_heads(gated)
    if recipe.repair.tokens:
        small = repair(whole, small, recipe.repair, texts)
    for name, config in recipe.heal.items():
        heal(small, whole, name, config, texts, rng, watch)
    return small


def choose(whole: Transformer, recipe: Recipe, texts: Texts, rng: Generators, watch: Watch) -> Transformer:
    """Return the whole model with gates, of which exactly those are open that the recipe lets stay."""
    how, config = recipe.choose, recipe.gate_train
    if how.by != "gates":
        return chosen_by_scores(in_parts(whole, how), recipe, texts, rng, watch)
    segments = texts.segments("gate", config, whole.config.T, whole)
    gated, objective = with_gates(whole, recipe, segments.per_epoch)
    finish = partial(hit_target, how=how)
    watch.fit(Stage("gate", gated, segments, config, objective, rng("gate"), finish))
    if how.rewind:
        return with_parts(in_parts(whole, how), open_parts(gated))
    texts.read_on(config)
    return gated


def repair(whole: Transformer, small: Transformer, how: RepairConfig, texts: Texts) -> Transformer:
    """Return the small model with the last matrices of its blocks fitted to what the whole model computes."""
    tokens = texts.to_repair(how.tokens, whole.config.T, whole)
    theirs, ours = (model.in_precision(how.precision) for model in (whole, small))
    if how.mode == "sequential":
        fitted = refitted(theirs, ours, tokens, partial(rounded, kind=how.type))
    else:
        fitted = refitted_at_once(theirs, ours, tokens)
    return fitted.in_precision(small.ops.precision)


def heal(
    small: Transformer,
    whole: Transformer | None,
    name: str,
    config: TrainConfig,
    texts: Texts,
    rng: Generators,
    watch: Watch,
) -> None:
    """Train the small model in place; `config.distill` of the loss is the divergence from the whole model."""
    objective: Objective = LanguageModelling()
    if whole is not None and config.distill:
        objective = Distillation(whole, config.distill)
    segments = texts.segments(name, config, small.config.T, whole)
    stage = Stage(name, small, segments, config, objective, rng(name))
    watch.fit(stage)
    texts.read_on(stage.config)
