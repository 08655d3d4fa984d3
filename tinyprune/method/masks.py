"""Turn scores into masks with an exact number of parts, and masks into models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig
from tinyprune.errors import UsageError
from tinyprune.method.gates import CLOSED, OPEN, add_gates
from tinyprune.model.parts import Mask, Parts, Scores, within
from tinyprune.model.transformer import Transformer

SCOPES = ("global", "layer")
TINY = np.finfo(float).tiny


def with_parts(model: Transformer, mask: Mask | None = None) -> Transformer:
    """Return the model with gates that are 1 for the parts of `mask` and 0 for the others; None keeps all parts.

    Args:
        model: its gates are ignored. It is not modified, but its arrays are shared.
        mask: which parts stay.

    Returns:
        a model without output scaling: the heads that stay compute what they did before, as in conventional pruning.

    Raises:
        ValueError: unless the mask has one entry for each part.
    """
    parts = Parts(model.config)
    if mask is None:
        mask = parts.full(True)
    shapes = [np.shape(own) for own in mask]
    if shapes != [(count,) for count in parts.counts]:
        raise ValueError(f"mask must have {parts.counts} heads by layer, got {shapes}")
    gate = GateConfig(output_scaling=False)
    params = add_gates(model.params, model.config, gate)
    for name, own in zip(parts.gates, mask, strict=True):
        params[name][:] = np.where(own, OPEN, CLOSED)
    return dataclasses.replace(model, params=params, gate=gate)


def keep_within(scores: Scores, prices: NDArray, budget: float) -> Mask:
    """Return the mask of the parts with the largest scores for their `prices`, (all parts,), within a budget."""
    joined = np.concatenate(scores) / np.maximum(prices, TINY)
    stay = within(np.argsort(-joined, kind="stable"), prices, budget)
    ends = np.cumsum([own.size for own in scores])
    return np.split(stay, ends[:-1])


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
    sizes = [own.size for own in scores]
    joined = np.concatenate(scores)
    if scope not in SCOPES:
        raise UsageError(f"scope must be one of {', '.join(SCOPES)}; got {scope!r}")
    if not 0 <= heads <= joined.size:
        raise UsageError(f"heads must be between 0 and the {joined.size} there are, got {heads}")
    if np.isnan(joined).any():
        raise ValueError("scores must be numbers, got NaN")
    if scope == "layer":
        shares = layer_shares(sizes, heads)
        return [mask for own, k in zip(scores, shares, strict=True) for mask in keep_best([own], k)]
    return keep_within(scores, np.ones(joined.size), heads)


def layer_shares(sizes: Sequence[int], heads: int) -> list[int]:
    """Split `heads` over layers by their sizes: largest remainders first, then earlier layers (Hamilton's method)."""
    exact = np.array(sizes) * heads / max(sum(sizes), 1)
    shares = np.floor(exact).astype(int)
    first = np.argsort(-(exact - shares), kind="stable")[: heads - shares.sum()]
    shares[first] += 1
    return shares.tolist()
