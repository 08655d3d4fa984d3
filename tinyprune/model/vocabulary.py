"""Both ends of the model, which know the vocabulary: the embedding at the input, the softmax at the output.

    plain      one table E (V, D), used twice: x = E[id],  logits = h Eᵀ + b
    adaptive   a table for each cluster of words, narrower for rarer ones, with projections to width D; also used twice

The model's `cutoffs` select one. Since the tables are used at both ends, their two gradients are added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.model import Parameters
from tinyprune.ops.engine import Engine


def cluster_ranges(config: ModelConfig) -> list[tuple[int, int]]:
    """Return the first id and one past the last id of each cluster of the adaptive softmax."""
    return list(zip((0, *config.cutoffs), (*config.cutoffs, config.V), strict=True))


def embedding_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tables, and of the projections of all clusters but the first."""
    if not config.cutoffs:
        return {"embedding": (config.V, config.D)}
    shapes: dict[str, tuple[int, ...]] = {}
    for c, (first, end) in enumerate(cluster_ranges(config)):
        width = config.D // config.div_value**c
        shapes[f"embedding.{c}"] = (end - first, width)
        if c:
            shapes[f"projection.{c}"] = (width, config.D)
    return shapes


def softmax_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of what only the softmax has: biases, and vectors for the clusters of rarer words."""
    if not config.cutoffs:
        shapes: dict[str, tuple[int, ...]] = {}
        if not config.tied:
            shapes["unembedding"] = (config.V, config.D)
        if config.bias == "output":
            shapes["out_bias"] = (config.V,)
        return shapes
    C = len(config.cutoffs)
    shapes = {"cluster.weight": (C, config.D), "cluster.bias": (C,)}
    for c, (first, end) in enumerate(cluster_ranges(config)):
        shapes[f"out_bias.{c}"] = (end - first,)
    return shapes


def clusters(p: Parameters, config: ModelConfig) -> tuple[list[NDArray], list[NDArray]]:
    """Return the tables and the projections of the adaptive embedding."""
    C = len(config.cutoffs)
    return [p[f"embedding.{c}"] for c in range(C + 1)], [p[f"projection.{c}"] for c in range(1, C + 1)]


def adaptive_arguments(p: Parameters, config: ModelConfig) -> tuple:
    """Return the adaptive softmax's parameters in the order of its arguments."""
    biases = [p[f"out_bias.{c}"] for c in range(len(config.cutoffs) + 1)]
    return (*clusters(p, config), p["cluster.weight"], p["cluster.bias"], biases)


def embed_forward(
    ids: NDArray, p: Parameters, config: ModelConfig, ops: Engine, rng: np.random.Generator | None
) -> tuple[NDArray, tuple]:
    """Embed tokens: ids (B, T) → x (B, T, D) and the cache. `rng` draws whole-word dropout; None for evaluation."""
    dropout = config.dropout_embedding
    if config.cutoffs:
        return ops.adaptive_embedding_forward(ids, *clusters(p, config), dropout=dropout, rng=rng)
    scale = None if config.embedding == "scaled" else 1.0
    return ops.embedding_forward(ids, p["embedding"], scale=scale, dropout=dropout, rng=rng)


def embed_backward(dx: NDArray, cache: tuple, config: ModelConfig, ops: Engine) -> Parameters:
    """Return the gradients of the parameters of `embed_forward`, by name."""
    if not config.cutoffs:
        return {"embedding": ops.embedding_backward(dx, cache)}
    dtables, dprojections = ops.adaptive_embedding_backward(dx, cache)
    return by_name(dtables, dprojections)


def predict_forward(
    h: NDArray,
    targets: NDArray,
    p: Parameters,
    config: ModelConfig,
    ops: Engine,
    teacher: NDArray | None = None,
    share: float = 0.0,
    frozen: bool = False,
) -> tuple[np.inexact, tuple]:
    """Return the mean cross-entropy of predicting targets (B, T) from h (B, T, D), nats per token, and the cache.

    With a `teacher`, log-probabilities (B, T, V), it is `ops.distillation`; an adaptive softmax has none. Where the
    table is `frozen` it gets no gradient, except an adaptive softmax's.
    """
    if config.cutoffs:
        return ops.adaptive_softmax_forward(h, targets, *adaptive_arguments(p, config))
    logits, output = ops.linear_forward(h, output_table(p).T, p.get("out_bias"), frozen=frozen)
    if teacher is None:
        loss, softmax = ops.cross_entropy_forward(logits, targets, overwrite=True)
        return loss, (output, softmax, ops.cross_entropy_backward)
    loss, B = logits.dtype.type(0), len(targets)
    for row in range(B):  # its arrays for all of them would be most of the memory of a training
        own, softmax = ops.distillation_forward(logits[row], targets[row], teacher[row], share=share)
        ops.set_rows(logits[row], ops.distillation_backward(1 / B, softmax))
        loss += own / B
    return loss, (output, logits, scaled)


def scaled(dloss: float, dlogits: NDArray) -> NDArray:
    """Return dloss · dlogits, without a copy for 1: they are as large as all else of a step."""
    return dlogits if dloss == 1 else dloss * dlogits


def predict_backward(dloss: float, cache: tuple, config: ModelConfig, ops: Engine) -> tuple[NDArray, Parameters]:
    """Return the gradients of `predict_forward`: dh (B, T, D), and those of the parameters by name."""
    if config.cutoffs:
        dh, dtables, dprojections, dweight, dbias, dbiases = ops.adaptive_softmax_backward(dloss, cache)
        grads = by_name(dtables, dprojections) | {"cluster.weight": dweight, "cluster.bias": dbias}
        return dh, grads | {f"out_bias.{c}": g for c, g in enumerate(dbiases)}
    output, softmax, loss_backward = cache
    # loss = cross_entropy(logits) or distillation(logits), logits = h Eᵀ + out_bias
    dlogits = loss_backward(dloss, softmax)
    dh, dtable, dbias = ops.linear_backward(dlogits, output)
    grads = {}
    if dtable is not None:
        grads["embedding" if config.tied else "unembedding"] = dtable.T
    if dbias is not None:
        grads["out_bias"] = dbias
    return dh, grads


def output_table(p: Parameters) -> NDArray:
    """Return the table (V, D) whose rows the hidden state is compared with."""
    return p.get("unembedding", p["embedding"])


def by_name(dtables: list[NDArray], dprojections: list[NDArray]) -> Parameters:
    """Return the gradients of the clusters' tables and projections by parameter name."""
    grads = {f"embedding.{c}": g for c, g in enumerate(dtables)}
    return grads | {f"projection.{c}": g for c, g in enumerate(dprojections, start=1)}


def log_probabilities(h: NDArray, p: Parameters, config: ModelConfig, ops: Engine) -> NDArray:
    """Return log p of every next token, (…, V), from hidden states (…, D)."""
    if config.cutoffs:
        return ops.adaptive_log_probabilities(h, *adaptive_arguments(p, config))
    logits, _ = ops.linear_forward(h, output_table(p).T, p.get("out_bias"))
    return ops.log_softmax(logits)
