"""Repair: before heads are removed, change what stays so that each layer's output changes as little as possible.

W of the heads that stay, and b, are fitted to the output of all heads by least squares (OSSCAR, SlimGPT): a closed
formula in the products of one reading of a text, see `importance.fits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from numpy.typing import NDArray

from tinyprune.model.parameters import OUTPUTS, UNIT_OUTPUTS
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance.fits import BlockFit, read_fits
from tinyprune.pruning.importance.masks import Mask, with_heads


def repaired(model: Transformer, mask: Mask, tokens: NDArray) -> Transformer:
    """Return the model with gates that close the heads outside of `mask`, and weights that make up for them.

    Args:
        model: with all its heads; it is not modified.
        mask: which heads, and blocks, stay.
        tokens: the text that is read for it, (n,).

    Returns:
        a model as `importance.with_heads` makes it; `surgery.remove_closed_heads` makes it smaller.

    Raises:
        UsageError: if the text is shorter than one segment, or the model has closed gates.
        ValueError: unless the mask has one entry for each head of each layer.
    """
    return repaired_from(model, mask, read_fits(model, tokens))


def repaired_from(model: Transformer, mask: Mask, layers: Sequence[Sequence[BlockFit]]) -> Transformer:
    """Do the same with the fits of each layer, see `read_fits`, for several masks after one reading."""
    gated = with_heads(model, mask)
    params = dict(gated.params)
    for part, (fits, stay) in enumerate(zip(layers, mask, strict=True)):
        i, outputs = part % model.config.L, OUTPUTS if part < model.config.L else UNIT_OUTPUTS
        for names, fit in zip(outputs.items(), fits, strict=False):
            W = fit.fitted(stay)
            for name, value in zip(names, (W[:-1], W[-1]), strict=True):
                old = params.get(f"layers.{i}.{name}")
                if old is not None:  # bo may be absent
                    params[f"layers.{i}.{name}"] = model.ops.to_device(value.reshape(old.shape).astype(old.dtype))
    return dataclasses.replace(gated, params=params)
