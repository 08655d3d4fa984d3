"""The criteria of importance: from a model and a text to a score for each head, larger for heads worth more.

All have the same arguments: the model, which is not modified; tokens, (n,); and a generator, which only random scores
use. They return an array (H,) for each layer. The first sentence of each is what `tinyprune list methods` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.errors import UsageError
from tinyprune.io.progress import progress_bar
from tinyprune.method.fits import read_fits
from tinyprune.method.gates import open_parts
from tinyprune.method.masks import TINY, with_parts
from tinyprune.method.repair import blocks_of
from tinyprune.method.roles import storing_weights
from tinyprune.model.parts import Parts, Scores
from tinyprune.model.transformer import Cache, Transformer, gated_outputs
from tinyprune.ops import head_difference
from tinyprune.training.evaluation import mean_loss, read_segments, segments_of

# Kinds of heads and of second blocks, by property of `ModelConfig`, whose matrices `magnitude` knows.
KNOWN = {"persistent": ("softmax", "stream"), "second": ("None", "networks", "relu", "gelu", "swiglu")}


def random_scores(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Random scores: the baseline that every other criterion has to beat."""
    return [rng.random(count) for count in Parts(model.config).counts]


def magnitude(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Magnitude: a head with small matrices changes little, whatever it looks at.

        score_h = ‖Wv^h‖ · ‖Wo^h‖          Frobenius norms of the Dh columns of Wv that it reads and its Dh rows of Wo
                + ‖pk^h‖ · ‖pv^h‖          if it has a network, of that network's keys and values
        score_b = ‖W1^b‖ · ‖W2^b‖          of a block of units, its columns of W1 (and Wg) and its rows of W2

    The product bounds what the head can add for a context of a given size. It does not change when Wv^h is multiplied
    by a factor and Wo^h divided by it, which (if the head's persistent values are scaled with Wv^h) leaves the model
    the same.
    """
    check_known(model.config)
    D, Dh = model.config.D, model.config.Dh
    params, scores = model.host_params(), []
    for i, H in enumerate(model.config.heads):
        Wv, Wo = params[f"layers.{i}.Wv"], params[f"layers.{i}.Wo"]
        values = np.sqrt((Wv.reshape(D, -1, Dh) ** 2).sum((0, 2)))
        if (groups := model.config.groups(i)) is not None:
            values = values[list(groups)]
        outputs = np.sqrt((Wo.reshape(H, Dh, D) ** 2).sum((1, 2)))
        scores.append(values * outputs)
        if model.config.networks:
            matrices = (params[f"layers.{i}.net.{name}"] for name in ("pk", "pv"))
            pk, pv = (np.sqrt((W**2).sum((1, 2))) for W in matrices)
            scores[-1] += pk * pv
    for i, count in enumerate(model.config.blocks):
        names = [f"layers.{i}.ffn.{name}" for name in ("W1", "Wg")]
        inner = np.concatenate([params[name].T for name in names if name in params], 1)
        squares = ((W**2).reshape(count, -1).sum(1) for W in (inner, params[f"layers.{i}.ffn.W2"]))
        scores.append(np.sqrt(np.prod(list(squares), 0)))
    return scores


def check_known(config: ModelConfig) -> None:
    """Raise UsageError for heads or blocks of a kind whose matrices `magnitude` would leave out of the score."""
    for name, known in KNOWN.items():
        value = str(getattr(config, name))
        if value not in known:
            raise UsageError(
                f"magnitude must be told which matrices belong to {name} {value!r}; it knows those of "
                f"{', '.join(known)}; choose another criterion"
            )


def confidence(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Confidence: a head that often puts most of its weight on one position is sure of its choice.

        score_h = mean over queries of max_j a_hij         j over context keys and persistent vectors alike

    Compiled kernels never store the attention weights, so the textbook's attention reads the text.
    (Voita et al. 2019, §3)
    """
    if model.config.U:
        raise UsageError("confidence is that of heads: blocks of units have none; choose another criterion")
    textbook = storing_weights(model)

    def scores(cache: Cache) -> Iterable[NDArray]:
        for i in range(model.config.L):
            attention_block, _ = textbook.layer_caches(i, cache)
            yield attention_block.attention.a.max(-1).mean((0, 2))

    return _mean_over_segments(textbook, tokens, scores, all_heads=True)


def michel_global(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Michel's importance: how much the loss changes with the head's gate, in all layers alike.

        I_h = mean over examples of |∂loss(example) / ∂g_h|        at g = 1

    An example is one segment of the text. The absolute value comes before the mean: examples in which the head helps do
    not cancel those in which it hurts. A model without gates is scored with all its heads; heads whose gates are shut
    score 0. (Michel, Levy & Neubig 2019, §4.1)
    """
    gated = with_parts(model) if model.gate is None else model

    def scores(cache: Cache) -> Iterable[NDArray]:
        _, dgates = gated.backward_with_gates(1.0, cache)
        return (np.abs(gated.ops.to_host(dgate)) for dgate in dgates)

    # one stream: a batch would give the gradient of its mean
    return _mean_over_segments(gated, tokens, scores, streams=1, frozen=True)


def michel(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Michel's importance: how much the loss changes with the head's gate, divided by its layer's norm.

    The scores I of `michel_global` become I_h / ‖I of its layer‖₂, so that layers can be compared. A layer without any
    effect has scores of 0.
    """
    scores = michel_global(model, tokens, rng)
    return [layer / max(np.sqrt((layer**2).sum()), TINY) for layer in scores]


def leave_one_out(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Leave one out: measure the exact difference in loss.

        score_h = loss without head h − loss with all          in nats per token, all other heads as they are

    It reads the text once for each head: the most expensive criterion, and the only one that measures the loss
    directly. It still ignores pairs: of two heads that do the same thing, either is dispensable, but not both. A head
    whose gate is shut already scores 0. (Michel, Levy & Neubig 2019, §3.2, ablate single heads so)
    """
    present = open_parts(model)
    whole = mean_loss(with_parts(model, present), tokens)
    scores = [np.zeros(count) for count in Parts(model.config).counts]
    each = [(layer, h) for layer, mask in enumerate(present) for h in np.flatnonzero(mask)]
    for layer, h in progress_bar(each, desc="leave one out", unit="head"):
        present[layer][h] = False
        scores[layer][h] = mean_loss(with_parts(model, present), tokens) - whole
        present[layer][h] = True
    return scores


def output_difference(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Output difference: the distance between the layer's output with the head and without it.

        score_h = mean over positions of ‖Δ_h‖₂          Δ_h = y(g_h = 1) − y(g_h = 0), see `ops.head_difference`

    For a head with a network, the network's output is included. The score sees what a head adds to the residual stream,
    not whether later layers care.
    """
    host = model.ops.to_host

    def scores(cache: Cache) -> Iterable[NDArray]:
        for i, gates in enumerate(cache.gates):
            scale = 1.0 if gates is None else gates.scale
            outputs = gated_outputs(model, cache, i)
            delta = np.sum([head_difference(host(o), host(W), scale) for o, W, _ in outputs], 0)
            yield np.sqrt((delta**2).sum(-1)).mean((1, 2))  # delta (H, B, T, D)

    return _mean_over_segments(model, tokens, scores, all_heads=True)


def fluctuation(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Fluctuation: how much a head's part of its layer's output varies over the text.

        score_h = Σ_j var(X_j) ‖W_j‖²       over the head's outputs j, X_j, and the rows of Wo that they meet

    A head whose output hardly varies can be replaced by its mean, which fits into the bias bo, see `method.repair`. A
    head that has a network adds what its units and values give by the same formula. As in FLAP, scores are standardised
    within each layer, so that layers can be compared: its mean is subtracted and its standard deviation divided out.
    (FLAP; An et al. 2023, 2312.11983)
    """
    scores = []
    for fits in read_fits(model, tokens):
        score = np.sum([fit.fluctuation() for fit in fits], 0)
        if score.size:
            score = (score - score.mean()) / max(score.std(), TINY)
        scores.append(score)
    return scores


def activations(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Activations: how large a head's output, or a block's units, are on the text.

        score_h = mean over positions of ‖o_h‖₂          o_h before Wo; of a head with a network, its units as well
        score_b = mean over positions of Σ_u |h_u|       h what W2 reads, for SwiGLU the product

    In the original a text's positions are averaged, and texts joined by their L2 norm. It removes as many heads, and as
    many units, from each layer. So are these scores compared within a layer alone, whatever `choose.scope` is: the best
    heads, and the best blocks, of each stay, the same share of all. How large the stream is that a layer adds to, and
    how large the matrices are that come next, is not in them. (Minitron; Muralidharan et al. 2024, arXiv 2407.14679,
    §2.2, and NVIDIA's Model Optimizer)
    """

    def scores(cache: Cache) -> Iterable[NDArray]:
        for i, _ in enumerate(cache.gates):
            made = [model.ops.to_host(outputs) for outputs, _, _ in gated_outputs(model, cache, i)]
            if i < model.config.L:
                sizes = np.sqrt(np.sum([(o**2).sum(-1) for o in made], 0))
            else:
                sizes = np.abs(made[0]).sum(-1)
            yield sizes.mean((0, 1))

    return _mean_over_segments(model, tokens, scores, all_heads=True)


def whole_layers(model: Transformer, tokens: NDArray, rng: np.random.Generator) -> Scores:
    """Whole layers: how far a layer turns the stream, the score of all its parts, which stay or go together.

        score = 1 − mean over positions of cos(x_i, x_i₊₁)          x_i the stream that enters layer i

    It is called Block Influence there. (ShortGPT; Men et al. 2024, arXiv 2403.03853, eq. 1)

    Raises UsageError if the model has units that are no parts.
    """
    config, host = model.config, model.ops.to_host
    if config.F and not config.U:
        raise UsageError("choose.units (--units) must be given for whole-layers, which go with their units")
    segments = segments_of(tokens, config.T)
    before = [model.enter(segments.batch(step)[0])[0] for step in range(segments.per_epoch)]
    influence = []
    for i in progress_bar(range(config.L), desc="whole layers", unit="layer"):
        after = before
        for second in (False, True)[: 1 + (config.second is not None)]:
            after = [y for y, _ in blocks_of(model, after, i, second)]
        influence.append(1 - np.mean([cosines(host(x), host(y)) for x, y in zip(before, after, strict=True)]))
        before = after
    return [np.full(count, influence[place % config.L]) for place, count in enumerate(Parts(config).counts)]


def cosines(x: NDArray, y: NDArray) -> NDArray:
    """Return the cosine of the angle between vectors (…, D) and others."""
    x, y = x.astype(float), y.astype(float)
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return (x * y).sum(-1) / np.maximum(lengths, TINY)


def _mean_over_segments(
    model: Transformer, tokens: NDArray, scores: Callable[[Cache], Iterable[NDArray]], **options: Any
) -> Scores:
    """Return the mean over the segments of a text of `scores`, which gives (H,) for each layer of a segment's cache."""
    sums, segments = [np.zeros(count) for count in Parts(model.config).counts], 0
    for _, cache in read_segments(model, tokens, **options):
        segments += 1
        for total, score in zip(sums, scores(cache), strict=True):
            total += score
    return [total / segments for total in sums]


CRITERIA = {
    "random": random_scores,
    "magnitude": magnitude,
    "confidence": confidence,
    "michel": michel,
    "michel-global": michel_global,
    "leave-one-out": leave_one_out,
    "output-difference": output_difference,
    "fluctuation": fluctuation,
    "activations": activations,
    "whole-layers": whole_layers,
}
