"""Count a model's parameters and multiply-adds, in total and for each head.

Parameters are counted as they are stored, without the gates, which are gone after removal. Multiply-adds are counted
for one token of a long text, with cached keys and values of earlier tokens (as in generation): every query meets
K = M + 1 context keys under the same-length mask, M + (T + 1)/2 on average under the causal one, and N persistent ones.
Norms, softmax and other work that is not a product is left out; so is R·Wr, which does not depend on the text.

    one head:  D·Dh for each of q, k, v and its rows of Wo;  K·Dh for content scores, position scores, values;
               N·Dh for persistent scores and again for persistent values, N·D in a network of the head's own

    one block of U units:  D·U for each of W1, Wg and its rows of W2

In grouped-query attention k and v belong to a key-value head, which goes with the last head that reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinyprune.config import ModelConfig
from tinyprune.model.parameters import HEAD_AXIS, norm_shapes, parameter_shapes

MUCH = 1 << 24  # numbers in the inputs of all layers; where there are more, backward computes layers again from these


@dataclass(frozen=True)
class Row:
    """A line of the table, which names a part and gives its parameters and its multiply-adds per token."""

    part: str
    parameters: int
    multiply_adds_per_token: int


def context_keys(config: ModelConfig) -> float:
    """Return the number of context keys that a query meets, on average over a segment."""
    return config.M + 1 if config.mask == "same-length" else config.M + (config.T + 1) / 2


def head_part(config: ModelConfig) -> Row:
    """Return the counts of one head, which are exactly what its removal saves."""
    D, Dh, N, K = config.D, config.Dh, config.N, context_keys(config)
    own = 2 if config.kv_heads else 4  # of Wq, Wo and, unless they are shared, Wk, Wv
    width, biases = (D, N) if config.networks else (Dh, 0)  # of persistent vectors
    biases += (own - 1) * Dh if config.biased_projections else 0  # bo belongs to no head
    parameters = (own + config.relative) * D * Dh + 2 * Dh * config.relative + 2 * N * width + biases
    scores_and_values = (2 + config.relative) * K * Dh + 2 * N * width
    return Row("one head", parameters, round(own * D * Dh + scores_and_values))


def training_bytes(config: ModelConfig, B: int, teacher: ModelConfig | None = None, frozen: bool = False) -> int:
    """Return about how much memory training takes: parameters, gradients, averages, and what backward needs.

    To it comes the teacher of a distillation, and what it predicts. Where weights are `frozen`, only gates have
    gradients and averages. `config` has V set. The textbook also stores scores, B · H · T · (S + N) numbers for each
    layer, which are not counted: compiled kernels do not.
    """
    D, T, S, kept = config.D, config.T, config.M + config.T, 0
    for i, H in enumerate(config.heads):
        width, units = H * config.Dh, H * config.N if config.networks else 2 * config.width(i)
        kept += B * (S * (2 * D + 2 * width) + T * (4 * D + 4 * width + 2 * units))
    kept *= MUCH * (1 + frozen) >= B * T * D * config.L
    taught = 0 if teacher is None else count_parameters(teacher) + B * T * config.V
    return 4 * ((1 if frozen else 4) * count_parameters(config) + kept + 2 * B * T * config.V + taught)


def products_of(config: ModelConfig) -> int:
    """Return the number of matrices in a feed-forward block."""
    return 3 if config.feedforward == "swiglu" else 2


def count_parts(config: ModelConfig) -> list[Row]:
    """Return the parts of the model, the embedding separately; their sums are the whole model.

    Raises:
        ValueError: if the vocabulary's size V is not set.
    """
    if not config.V:
        raise ValueError("config.V must be set to count a model, got 0")
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    head = head_part(config)
    # both ends share their matrices; the tail that rarer words of an adaptive softmax cost as well is not counted
    names = ("embedding", "unembedding", "projection", "cluster", "out_bias")
    outputs = config.cutoffs[0] + len(config.cutoffs) if config.cutoffs else config.V
    ends = sum(size for name, size in sizes.items() if name.startswith(names))
    parts = [Row("embedding and softmax", ends, outputs * config.D)]
    own: dict[int, dict[str, int]] = {}  # sizes of each layer's parameters, by short name
    for name in sizes:
        if name.startswith("layers."):
            _, number, short = name.split(".", 2)
            own.setdefault(int(number), {})[short] = sizes[name]
    parts.append(Row("positions", sizes.get("R", 0) + sizes.get("positions", 0), 0))
    shared_biases = 2 * config.Dh if config.biased_projections else 0
    for i, H in enumerate(config.heads):
        parts.append(Row(f"layer {i}: {H} heads", H * head.parameters, H * head.multiply_adds_per_token))
        if config.kv_heads:
            K, products = len(config.kv_ids(i)), 2 * config.D * config.Dh
            parts.append(Row(f"layer {i}: {K} key-value heads", K * (products + shared_biases), K * products))
        layer = own[i]
        shared = {n: s for n, s in layer.items() if n not in HEAD_AXIS and not n.startswith("ffn.")}
        parts.append(Row(f"layer {i}: shared (norm, bo)", sum(shared.values()), 0))
        if config.F:
            block = sum(s for n, s in layer.items() if n.startswith("ffn."))
            units = f", {config.width(i)} units" if config.U else ""
            products = products_of(config) * config.D * config.width(i)
            parts.append(Row(f"layer {i}: feed-forward{units}", block, products))
    parts.append(Row("last norm", sum(sizes[name] for name in norm_shapes(config, "ln")), 0))
    return parts


def count_parameters(config: ModelConfig) -> int:
    """Return the number of all parameters."""
    return sum(part.parameters for part in count_parts(config))


def count_multiply_adds(config: ModelConfig) -> int:
    """Return the multiply-adds of the whole model for one token."""
    return sum(part.multiply_adds_per_token for part in count_parts(config))
