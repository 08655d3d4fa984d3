"""Choosing without gates: by a criterion, by least squares, or the same share of each layer without looking."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import OF_LAYERS, WITHIN_LAYERS, ChooseConfig
from tinyprune.method.criteria import CRITERIA
from tinyprune.method.fits import read_fits
from tinyprune.method.gates import CLOSED, OPEN, add_gates, budget, hit_target
from tinyprune.method.least_squares import search
from tinyprune.method.masks import TINY, keep_best, with_parts
from tinyprune.method.recipe import Generators, Recipe, Watch
from tinyprune.method.texts import Texts
from tinyprune.model.parts import Mask, Parts, Scores, summed, within
from tinyprune.model.transformer import Transformer


def chosen_by_scores(parted: Transformer, recipe: Recipe, texts: Texts, rng: Generators, watch: Watch) -> Transformer:
    """Return a model with gates that are open for what stays, without training any.

    Args:
        parted: without gates, see `gates.in_parts`; its arrays are shared.
        recipe, texts, rng, watch: see `prune`.
    """
    how = recipe.choose
    if how.by == "layers":
        return with_parts(parted, alike(parted, how))
    if how.by == "least-squares":  # it reads what a repair reads, whose costs it compares
        tokens = texts.to_repair(recipe.repair.tokens or how.tokens, parted.config.T, parted)
        watch.read(how.by, tokens)
        prices, most = budget(parted.config, how)
        return with_parts(parted, search(read_fits(parted, tokens), most or 0, prices))
    tokens = texts.to_score(how.tokens, parted)
    watch.read(how.by, tokens)
    scores = CRITERIA[how.by](parted, tokens, rng("scores"))
    watch.scored(scores)
    return open_best(parted, recipe, scores)


def alike(parted: Transformer, how: ChooseConfig) -> Mask:
    """Return the mask of the same share of the heads, and of the blocks of units, of each layer: the first ones."""
    config, mask = parted.config, []
    _, most = budget(config, how)
    share = (most or 0) / Parts(config).total
    for counts in filter(None, (config.heads, config.blocks)):
        nothing = [np.zeros(count) for count in counts]
        mask += keep_best(nothing, round(share * sum(counts)), "layer")
    return mask


def open_best(parted: Transformer, recipe: Recipe, scores: Scores) -> Transformer:
    """Return the model with gates that are open for the parts with the largest scores for their price.

    Args:
        parted: without gates; its arrays are shared.
        recipe: `choose` has the target; of `gate` only `groups` counts: heads with one gate are scored together.
        scores: split, the larger the better; ties go to the earlier layer and the lower head.
    """
    how, parts = recipe.choose, Parts(parted.config)
    if how.by in OF_LAYERS:
        return with_parts(parted, best_layers(parted, how, scores))
    by_layer = how.scope == "layer" or how.by in WITHIN_LAYERS
    if by_layer and how.target_heads is not None:
        return with_parts(parted, keep_best(scores, how.target_heads, "layer"))
    gate = dataclasses.replace(recipe.gate, output_scaling=False, hard=True)
    first = parts.tied(gate.groups)
    prices, _ = budget(parted.config, how)
    costs = np.ones(first.size)
    if prices is not None:
        costs = np.maximum(prices, TINY)
    worth = summed(np.concatenate(scores), first) / summed(costs, first)
    if by_layer:
        worth = np.concatenate([ranks(own) for own in parts.split(worth)])
    if not how.heads:
        worth[: sum(parted.config.heads)] = np.inf
    log_alpha = np.empty(worth.size)
    log_alpha[np.argsort(-worth, kind="stable")] = np.linspace(CLOSED, OPEN, worth.size)[::-1]
    params = add_gates(parted.params, parted.config, gate)
    params |= parts.named(log_alpha.astype(np.float32), parted.ops)
    gated = dataclasses.replace(parted, params=params, gate=gate)
    hit_target(gated, how)
    return gated


def ranks(worth: NDArray) -> NDArray:
    """Return numbers that fall from 0 to −1, from the best to the last; above a bound is the same share of any list."""
    places = np.argsort(np.argsort(-worth, kind="stable"))
    return -(places + 0.5) / max(worth.size, 1)


def best_layers(parted: Transformer, how: ChooseConfig, scores: Scores) -> Mask:
    """Return the mask of the layers with the largest scores that fit into the target, each with all its parts.

    What is left of the target is less than any other layer needs. It is a share of what the parts cost, for a layer's
    norms go with these: of 30 equal layers 0.9 are 27. A target in heads counts these alone.
    """
    config, parts, most = parted.config, Parts(parted.config), how.target_share
    prices, _ = budget(config, how)
    costs = np.ones(parts.total) if prices is None else prices
    if how.target_heads is not None:
        costs = np.repeat([1.0, 0.0], (sum(config.heads), sum(config.blocks)))
        most = how.target_heads / float(costs.sum())
    layer = np.repeat(np.arange(len(parts.counts)) % config.L, parts.counts)
    influence = np.full(config.L, -np.inf)  # of a layer that has no parts
    influence[layer] = np.concatenate(scores)
    order = np.argsort(-influence, kind="stable")
    stays = within(order, np.bincount(layer, costs / costs.sum(), config.L), most or 0)
    return parts.split(stays[layer])
