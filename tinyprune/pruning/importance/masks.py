"""Turn scores into masks with an exact number of heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig
from tinyprune.errors import UsageError
from tinyprune.model.gates import by_layer, first_parts, gate_names, split_log_alpha, together
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import CLOSED, OPEN, add_gates, budget, hit_target, with_new_gates, within

# For the heads of each layer (H,), then for the blocks of units of each, see `ModelConfig.parts`:
Scores = list[NDArray]  # the larger, the more worth keeping
Mask = list[NDArray[np.bool_]]  # which stay

SCOPES = ("global", "layer")
TINY = np.finfo(float).tiny


def with_heads(model: Transformer, mask: Mask | None = None) -> Transformer:
    """Return the model with gates that are 1 for the heads of `mask` and 0 for the others; None keeps all heads.

    Args:
        model: its gates are ignored. It is not modified, but its arrays are shared.
        mask: which heads stay.

    Returns:
        a model without output scaling: the heads that stay compute what they did before, as in conventional pruning.

    Raises:
        ValueError: unless the mask has one entry for each head of each layer, and for each block where there are some.
    """
    config, parts = model.config, model.config.parts
    mask = [np.ones(count, bool) for count in parts] if mask is None else mask
    if [np.shape(layer) for layer in mask] != [(count,) for count in parts]:
        raise ValueError(f"mask must have {parts} heads by layer, got {[np.shape(layer) for layer in mask]}")
    gate = GateConfig(output_scaling=False)
    params = add_gates(model.params, parts, gate)
    for name, layer in zip(gate_names(config.L, config.U), mask, strict=True):
        params[name][:] = np.where(layer, OPEN, CLOSED)
    return dataclasses.replace(model, params=params, gate=gate)


def with_scored_gates(model: Transformer, gate: GateConfig, score: Callable[[Transformer], Scores]) -> Transformer:
    """Return the model with gates that are 1 for the parts with the largest scores for their price, and 0 for others.

    Args:
        model: without gates; its arrays are shared.
        gate: with a target; of its gates only `units` and `heads` count.
        score: a criterion, which is given the model with parts for `units`.
    """
    gated, _ = with_new_gates(model, dataclasses.replace(gate, output_scaling=False, hard=True), 0)
    scores = score(dataclasses.replace(model, config=gated.config))
    (prices, _), first = budget(gated.config, gate), first_parts(gated.config, gate)
    costs = np.ones(first.size) if prices is None else np.maximum(prices, TINY)
    worth = together(np.concatenate(scores), first) / together(costs, first)
    worth[: 0 if gate.heads else sum(model.config.heads)] = np.inf
    log_alpha = np.empty(worth.size)
    log_alpha[np.argsort(worth, kind="stable")] = np.linspace(CLOSED, OPEN, worth.size)
    gated.params |= split_log_alpha(log_alpha.astype(np.float32), gated.config, model.ops)
    hit_target(gated)
    return gated


def keep_within(scores: Scores, prices: NDArray, budget: float) -> Mask:
    """Return the mask of the parts with the largest scores for their `prices`, (all parts,), within a budget."""
    joined = np.concatenate(scores) / np.maximum(prices, TINY)
    return by_layer(within(np.argsort(-joined, kind="stable"), prices, budget), [layer.size for layer in scores])


def keep_best(scores: Scores, heads: int, scope: str = "global") -> Mask:
    """Return the mask of the `heads` heads with the largest scores; ties go to the earlier layer and the lower head.

    Args:
        scores: of all heads; −inf marks a head that is already removed.
        heads: how many heads stay, in all layers together.
        scope: "global": in any layer. "layer": each layer keeps the same share of its heads, rounded by `layer_shares`.

    Raises:
        UsageError: if there are fewer heads, or no such scope.
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
    """Split `heads` over layers by their sizes: largest remainders first, then earlier layers (Hamilton's method)."""
    exact = np.array(sizes) * heads / max(sum(sizes), 1)
    shares = np.floor(exact).astype(int)
    first = np.argsort(-(exact - shares), kind="stable")[: heads - shares.sum()]
    shares[first] += 1
    return shares.tolist()
