"""Sequential repair: fit the last matrix of every block of a smaller model, from the first layer to the last.

The whole model and the smaller one read the same text side by side, one block after the other. With x the stream that
enters a block of the smaller model, X what its heads or units have made of it, and y the stream that leaves the same
block of the whole model, the block's last matrix and bias W̃ are replaced by those that minimise

    Σ_n w_n ‖X̃_n W̃' − (y_n − x_n)‖² + λ ‖W̃' − W̃‖²      X̃: X with a column of ones, where there is a bias

so that the stream is led back to the whole model's: errors of the blocks before are part of y − x. With the residual
R = y − x − X̃ W̃, and rows of X̃ and R times √w, this is W̃' = W̃ + (X̃ᵀX̃ + λI)⁻¹ X̃ᵀR. Of five passages the fifth is not
fitted to, but decides which λ is best for a block, once rounded, or that W̃ stays. (SlimGPT, Ling et al. 2024, arXiv
2412.18110) A position's w is 1 / mean(y_n²), since what reads y divides it by its length. That of a segment's first
token is up to 182 medians in SmolLM2 (massive activations, Sun et al. 2024, arXiv 2402.17762); else it decides alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import UsageError
from tinyprune.model.blocks import attention_block_forward, second_block_forward
from tinyprune.model.parameters import OUTPUTS, UNIT_OUTPUTS
from tinyprune.model.transformer import Transformer, remember
from tinyprune.progress import progress_bar
from tinyprune.training.checkpoints import release

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # λ as shares of the mean of X̃ᵀX̃'s diagonal
STREAMS = 8  # rows of a batch, each with another part of the text
FIFTH = 5  # of so many segments, one is held out


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
    ids = tokens[: rows * count * a.T].reshape(rows, count, a.T).swapaxes(0, 1)  # a segment of each stream at a time
    models = whole, dataclasses.replace(smaller, params=dict(smaller.params))
    streams = [[first_stream(model, segment) for segment in ids] for model in models]
    for i in progress_bar(range(a.L), desc="repair", unit="layer"):
        for second in (False, True):
            if second and a.second is None:
                continue
            wanted = [y for y, _ in blocks_of(whole, streams[0], i, second)]
            fit(models[1], i, second, blocks_of(models[1], streams[1], i, second), wanted, stored)
            streams = [wanted, [y for y, _ in blocks_of(models[1], streams[1], i, second)]]
        release(whole.params)
    return models[1]


def first_stream(model: Transformer, ids: NDArray) -> NDArray:
    """Return what the first layer reads, (B, T, D)."""
    x, _ = model.embed(ids)
    return model.ops.positions_forward(x, model.params.get("positions"))[0]


def blocks_of(model: Transformer, streams: list[NDArray], i: int, second: bool) -> Iterator[tuple[NDArray, NDArray]]:
    """Run one block of layer i on each segment; yield what leaves it, (B, T, D), and X, (B·T, columns)."""
    layer, config, ops, memory = model.layer(i, model.gates()), model.config, model.ops, None
    for x in streams:
        if second:
            y, cache = second_block_forward(x, layer, config, ops)
            assert cache is not None
            made = cache.inside.r if config.networks else cache.inside[-1].h
        else:
            y, context, attention = attention_block_forward(x, memory, layer, config, ops)
            memory, made = remember(x, context, config.M) if config.M else None, attention.attention.o
        yield y, ops.to_host(made).reshape(x.shape[0] * x.shape[1], -1)


def fit(
    model: Transformer, i: int, second: bool, before: Iterable[tuple[NDArray, NDArray]], wanted: list, stored: Callable
) -> None:
    """Replace the last matrix and bias of a block in `model.params`, see above.

    `before` is what it computes now, one segment after the other: X of a whole text may be larger than the model.
    """
    host = model.ops.to_host
    G: list[Any] = [0.0, 0.0]  # X̃ᵀX̃ of what is fitted to, and of what is held out
    C: list[Any] = [0.0, 0.0]  # X̃ᵀR
    table = UNIT_OUTPUTS if second and not model.config.networks else OUTPUTS
    names = [f"layers.{i}.{name}" for name in list(table.items())[-1 if second else 0]]
    W, b = model.params[names[0]], model.params.get(names[1])
    for place, ((y, X), target) in enumerate(zip(before, wanted, strict=True)):
        if not X.size:
            return
        R = (host(target) - host(y)).reshape(len(X), -1)
        X = X if b is None else np.hstack([X, np.ones((len(X), 1), X.dtype)])
        root = 1 / np.sqrt((host(target) ** 2).mean(-1) + 1e-12).reshape(-1, 1)  # of w
        X, R = root * X, root * R
        part = place % FIFTH == FIFTH - 1
        G[part], C[part] = G[part] + (X.T @ X).astype(float), C[part] + (X.T @ R).astype(float)
    arrays = [W] if b is None else [W, b]
    old = np.vstack([host(x).reshape(-1, host(x).shape[-1]) for x in arrays])
    n = len(old) + 1 - len(arrays)

    def kept(change: NDArray) -> NDArray:
        """Return what a file has of a change."""
        new = old + change
        return np.vstack([stored(new[:n]), new[n:]]) - old

    changes = [0 * C[0], *(kept(solved(G[0], C[0], ridge)) for ridge in RIDGES)]
    errors = [(x * (G[1] @ x)).sum() - 2 * (x * C[1]).sum() for x in changes]  # up to a constant
    best = int(np.argmin(errors))
    if best:
        new = old + kept(solved(G[0] + G[1], C[0] + C[1], RIDGES[best - 1]))
        for name, x, y in zip(names, arrays, np.split(new, [n]), strict=False):
            model.params[name] = model.ops.to_device(y.reshape(x.shape).astype(x.dtype))


def solved(G: NDArray, C: NDArray, ridge: float) -> NDArray:
    """Return (G + λI)⁻¹ C."""
    return np.linalg.solve(G + ridge * np.trace(G) / len(G) * np.eye(len(G)), C)
