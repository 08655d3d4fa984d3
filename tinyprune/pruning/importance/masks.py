"""From scores to heads: masks with an exact number of heads, in one shot or in rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig
from tinyprune.errors import UsageError
from tinyprune.model.gating import by_layer
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import add_gates, open_heads

Scores = list[NDArray]  # for each layer (H,): the larger, the more worth keeping
Mask = list[NDArray[np.bool_]]  # for each layer (H,): which heads stay

SCOPES = ("global", "layer")
OPEN, CLOSED = 20.0, -20.0  # log_alpha of gates that are exactly 1 and 0 in evaluation


def with_heads(model: Transformer, mask: Mask | None = None) -> Transformer:
    """The model with gates that are 1 for the heads of `mask` and 0 for the others; None for all of them.

    Args:
        model: any; with gates of its own or without, those are not looked at. Not modified, but its arrays are shared.
        mask: which heads stay.

    Returns:
        a model without output scaling: what is left computes just what it did before, as conventional pruning has it.

    Raises:
        ValueError: if the mask has not one entry for each head of each layer.
    """
    heads = model.config.heads
    mask = [np.ones(H, bool) for H in heads] if mask is None else mask
    if [np.shape(layer) for layer in mask] != [(H,) for H in heads]:
        raise ValueError(f"mask must have {heads} heads by layer, got {[np.shape(layer) for layer in mask]}")
    gate = GateConfig(output_scaling=False)
    params = add_gates(model.params, heads, gate)
    for i, layer in enumerate(mask):
        params[f"layers.{i}.log_alpha"][:] = np.where(layer, OPEN, CLOSED)
    return dataclasses.replace(model, params=params, gate=gate)


def keep_best(scores: Scores, heads: int, scope: str = "global") -> Mask:
    """The `heads` heads with the largest scores; among equal ones the earlier layer, the lower head stays.

    Args:
        scores: of all heads. A score of −inf is for a head that is gone already.
        heads: how many stay, of all layers.
        scope: "global": whichever they are. "layer": each layer keeps the same share of its heads, as near as whole
            heads allow; where they do not, the layers with the largest fractions, the earlier first, keep one more.

    Raises:
        UsageError: if there are not so many heads, or no such scope.
        ValueError: if a score is NaN.
    """
    sizes = [layer.size for layer in scores]
    joined = np.concatenate(scores)
    if scope not in SCOPES:
        raise UsageError(f"scope must be one of {', '.join(SCOPES)}; got {scope!r}")
    if not 0 <= heads <= joined.size:
        raise UsageError(f"heads must be between 0 and the {joined.size} there are, got {heads}")
    if np.isnan(joined).any():
        raise ValueError("scores must be numbers, got NaN")
    if scope == "layer":
        shares = layer_shares(sizes, heads)
        return [mask for s, k in zip(scores, shares, strict=True) for mask in keep_best([s], k)]
    mask = np.zeros(joined.size, bool)
    mask[np.argsort(-joined, kind="stable")[:heads]] = True
    return by_layer(mask, sizes)


def layer_shares(sizes: Sequence[int], heads: int) -> list[int]:
    """`heads` split over layers in proportion to their sizes, largest remainders first (Hamilton's method)."""
    exact = np.array(sizes) * heads / max(sum(sizes), 1)
    shares = np.floor(exact).astype(int)
    first = np.argsort(-(exact - shares), kind="stable")[: heads - shares.sum()]
    shares[first] += 1
    return shares.tolist()


def prune_in_rounds(
    model: Transformer,
    heads: int,
    score: Callable[[Transformer], Scores],
    rounds: int,
    scope: str = "global",
) -> Mask:
    """Remove the worst heads a few at a time and score the others anew after each round.

    One round is one-shot pruning. Michel et al. 2019 (§4.2) remove a tenth of all heads at a time.

    Args:
        model: as `score` wants it.
        heads: how many stay.
        score: scores of a model's heads; it gets models made by `with_heads`.
        rounds: at least 1; each removes as near to the same number as whole heads allow.
        scope: see `keep_best`.

    Raises:
        UsageError: if there are not so many heads, or less than one round.
    """
    total = sum(model.config.heads)
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    if not 0 <= heads <= total:
        raise UsageError(f"heads must be between 0 and the {total} there are, got {heads}")
    pruned = with_heads(model)
    for done in range(1, rounds + 1):
        left = total - round((total - heads) * done / rounds)
        scores = [np.where(mask, s, -np.inf) for mask, s in zip(open_heads(pruned), score(pruned), strict=True)]
        pruned = with_heads(model, keep_best(scores, left, scope))
    return open_heads(pruned)
