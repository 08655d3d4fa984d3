"""Repair: fit what stays to what the whole model computes, by least squares, without a gradient.

`refitted` fits the last matrix of every block of a smaller model, from the first layer to the last. The whole model
and the smaller one read the same text side by side, one block after the other. With x the stream that enters a block
of the smaller model, X what its heads or units have made of it, and y the stream that leaves the same block of the
whole model, the block's last matrix and bias W̃ are replaced by those that minimise

    Σ_n w_n ‖X̃_n W̃' − (y_n − x_n)‖² + λ ‖W̃' − W̃‖²      X̃: X with a column of ones, where there is a bias

so that the stream is led back to the whole model's: errors of the blocks before are part of y − x. With the residual
R = y − x − X̃ W̃, and rows of X̃ and R times √w, this is W̃' = W̃ + (X̃ᵀX̃ + λI)⁻¹ X̃ᵀR. Of five passages the fifth is not
fitted to, but decides which λ is best for a block, once rounded, or that W̃ stays. (SlimGPT, Ling et al. 2024, arXiv
2412.18110) A position's w is 1 / mean(y_n²), since what reads y divides it by its length. That of a segment's first
token is up to 182 medians in SmolLM2 (massive activations, Sun et al. 2024, arXiv 2402.17762); else it decides alone.

`refitted_at_once` fits all blocks to the whole model's own streams: a closed formula in the products of one reading of
a text (OSSCAR), see `fits`. It is quicker, and ignores what the blocks before have changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import UsageError
from tinyprune.io.progress import progress_bar
from tinyprune.method.fits import BlockFit, read_fits
from tinyprune.method.masks import with_parts
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.blocks import FEEDFORWARD, attention_block_forward, second_block_forward
from tinyprune.model.parameters import OUTPUTS, UNIT_OUTPUTS
from tinyprune.model.parts import Mask, Parts
from tinyprune.model.transformer import Transformer, remember
from tinyprune.training.checkpoints import release

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # λ as shares of the mean of X̃ᵀX̃'s diagonal
STREAMS = 8  # rows of a batch, each with another part of the text
FIFTH = 5  # of so many segments, one is held out


def refitted_at_once(whole: Transformer, smaller: Transformer, tokens: NDArray) -> Transformer:
    """Return the smaller model with all its last matrices fitted to the whole model's streams.

    Args:
        whole: the model before anything was removed, without gates.
        smaller: the model after it; neither is modified.
        tokens: the text, (n,).

    Raises UsageError if the text is shorter than one segment.
    """
    config = dataclasses.replace(whole.config, U=smaller.config.U)
    parted = dataclasses.replace(whole, config=config)
    before, after = Parts(parted.config).ids, Parts(smaller.config).ids
    mask = [np.isin(ids, stay) for ids, stay in zip(before, after, strict=True)]
    return remove_closed_heads(repaired(parted, mask, read_fits(parted, tokens)))


def repaired(model: Transformer, mask: Mask, fits: Sequence[Sequence[BlockFit]]) -> Transformer:
    """Return the model with gates that close the parts outside of `mask`, and weights that make up for them.

    Args:
        model: with all its parts; it is not modified.
        mask: which parts stay.
        fits: of the model, see `read_fits`.

    Raises ValueError unless the mask has one entry for each part.
    """
    gated = with_parts(model, mask)
    params = dict(gated.params)
    for place, (own, stay) in enumerate(zip(fits, mask, strict=True)):
        i, outputs = place % model.config.L, OUTPUTS if place < model.config.L else UNIT_OUTPUTS
        for names, fit in zip(outputs.items(), own, strict=False):
            W = fit.fitted(stay)
            for name, value in zip(names, (W[:-1], W[-1]), strict=True):
                old = params.get(f"layers.{i}.{name}")
                if old is not None:  # bo may be absent
                    new = value.reshape(old.shape).astype(old.dtype)
                    params[f"layers.{i}.{name}"] = model.ops.to_device(new)
    return dataclasses.replace(gated, params=params)


def refitted(
    whole: Transformer, smaller: Transformer, tokens: NDArray, stored: Callable[[NDArray], NDArray] = np.asarray
) -> Transformer:
    """Return the smaller model with the last matrices of its blocks fitted to what the whole model makes of a text.

    Args:
        whole: the model before anything was removed, without gates.
        smaller: the model after it, of as many layers; neither is modified.
        tokens: the text, (n,), at least five segments.
        stored: what a file will have of a fitted matrix, such as `pretrained.gguf.rounded`; later ones make up for it.

    Raises:
        UsageError: if the text is too short.
        ValueError: if the models have gates, or other sizes.
    """
    a, b = whole.config, smaller.config
    if (a.L, a.D, a.T, a.M, a.V) != (b.L, b.D, b.T, b.M, b.V):
        raise ValueError("whole and smaller must have the same L, D, T, M and V")
    if whole.gate is not None or smaller.gate is not None:
        raise ValueError("models must have no gates; remove closed heads first")
    if len(tokens) < FIFTH * a.T:
        raise UsageError(f"a repair needs at least {FIFTH} segments of {a.T} tokens to read, got {len(tokens)} tokens")
    rows = max(1, min(STREAMS, len(tokens) // (FIFTH * a.T)))
    count = len(tokens) // (rows * a.T)
    # a segment of each stream at a time
    ids = tokens[: rows * count * a.T].reshape(rows, count, a.T).swapaxes(0, 1)
    model = dataclasses.replace(smaller, params=dict(smaller.params))
    theirs, ours = ([m.enter(segment)[0] for segment in ids] for m in (whole, model))
    for i in progress_bar(range(a.L), desc="repair", unit="layer"):
        for second in (False, True):
            if second and a.second is None:
                continue
            theirs = [y for y, _ in blocks_of(whole, theirs, i, second)]
            fit(model, i, second, blocks_of(model, ours, i, second), theirs, stored)
            ours = [y for y, _ in blocks_of(model, ours, i, second)]
        release(whole.params)
    return model


def blocks_of(model: Transformer, streams: list[NDArray], i: int, second: bool) -> Iterator[tuple[NDArray, NDArray]]:
    """Run one block of layer i on each segment; yield what leaves it, (B, T, D), and X, (B·T, columns)."""
    layer, config, ops, memory = model.layer(i, model.gates()), model.config, model.ops, None
    for x in streams:
        if second:
            y, cache = second_block_forward(x, layer, config, ops)
            assert cache is not None
            made = FEEDFORWARD[config.second].units(cache.inside)
        else:
            y, context, attention = attention_block_forward(x, memory, layer, config, ops)
            memory = remember(x, context, config.M) if config.M else None
            made = attention.attention.o
        yield y, ops.to_host(made).reshape(x.shape[0] * x.shape[1], -1)


class Products(NamedTuple):
    """What a fit needs of the positions that it reads: G = X̃ᵀX̃ and C = X̃ᵀR, both float64."""

    G: NDArray
    C: NDArray

    def __add__(self, other: Products) -> Products:  # type: ignore[override]
        """Return the products of the positions of both."""
        return Products(self.G + other.G, self.C + other.C)

    def error(self, change: NDArray) -> float:
        """Return the squared error of W̃ + change, up to a constant."""
        return float((change * (self.G @ change)).sum() - 2 * (change * self.C).sum())

    def solved(self, ridge: float) -> NDArray:
        """Return (G + λI)⁻¹ C."""
        lam = ridge * np.trace(self.G) / len(self.G)
        return np.linalg.solve(self.G + lam * np.eye(len(self.G)), self.C)


def fit(
    model: Transformer, i: int, second: bool, before: Iterable[tuple[NDArray, NDArray]], wanted: list, stored: Callable
) -> None:
    """Replace the last matrix and bias of a block in `model.params`, see above.

    `before` is what it computes now, one segment after the other: X of a whole text may be larger than the model.
    """
    host = model.ops.to_host
    names = [f"layers.{i}.{name}" for name in output_names(model, second)]
    W, b = model.params[names[0]], model.params.get(names[1])
    fitted_to: list[Products] = []
    held_out: list[Products] = []
    for place, ((y, X), target) in enumerate(zip(before, wanted, strict=True)):
        if not X.size:
            return
        R = (host(target) - host(y)).reshape(len(X), -1)
        if b is not None:
            X = np.hstack([X, np.ones((len(X), 1), X.dtype)])
        root = 1 / np.sqrt((host(target) ** 2).mean(-1) + 1e-12).reshape(-1, 1)  # of w
        X, R = root * X, root * R
        own = held_out if place % FIFTH == FIFTH - 1 else fitted_to
        found = Products((X.T @ X).astype(float), (X.T @ R).astype(float))
        if own:
            found = own.pop() + found
        own.append(found)
    arrays = [W] if b is None else [W, b]
    old = np.vstack([host(x).reshape(-1, host(x).shape[-1]) for x in arrays])
    n = len(old) + 1 - len(arrays)

    def kept(change: NDArray) -> NDArray:
        """Return what a file has of a change."""
        new = old + change
        return np.vstack([stored(new[:n]), new[n:]]) - old

    (near,), (far,) = fitted_to, held_out
    changes = [0 * near.C, *(kept(near.solved(ridge)) for ridge in RIDGES)]
    best = int(np.argmin([far.error(change) for change in changes]))
    if best:
        new = old + kept((near + far).solved(RIDGES[best - 1]))
        for name, x, y in zip(names, arrays, np.split(new, [n]), strict=False):
            model.params[name] = model.ops.to_device(y.reshape(x.shape).astype(x.dtype))


def output_names(model: Transformer, second: bool) -> tuple[str, str]:
    """Return the names of the last matrix of a block, and of its bias, which may be absent."""
    name = FEEDFORWARD[model.config.second].last if second else "Wo"
    return name, (OUTPUTS | UNIT_OUTPUTS)[name]
