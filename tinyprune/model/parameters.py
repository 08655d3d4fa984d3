"""The parameters of a model: one flat dictionary from name to array, and which slices belong to a head.

Those of layer i are called `layers.i.NAME`. In its layer, a head h owns

    columns h·Dh … (h+1)·Dh of Wq, Wk, Wv, Wr      the same rows of Wo, the same entries of bq, bk, bv
    rows h of u, w, pk, pv, net.pk, net.pb, net.pv and log_alpha

and nothing else: heads are selected by slicing these, see `take_heads`. In grouped-query attention (Ainslie et al.
2023) several heads share a key-value head, slices of Wk, Wv, bk and bv, which goes with the last of them. A block of U
units owns columns of ffn.W1, ffn.Wg, ffn.b1 and ffn.bg, rows of ffn.W2, and its entry of ffn.log_alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.model import Parameters
from tinyprune.model.vocabulary import embedding_shapes, softmax_shapes
from tinyprune.ops import put_slices, take_slices

# Which axis of a layer's parameter runs over heads. Those in WIDE have Dh entries for each head, the others one.
HEAD_AXIS = {"Wq": 1, "Wk": 1, "Wv": 1, "Wr": 1, "Wo": 0, "u": 0, "w": 0, "pk": 0, "pv": 0}
HEAD_AXIS |= {"log_alpha": 0, "net.pk": 0, "net.pb": 0, "net.pv": 0, "bq": 0, "bk": 0, "bv": 0}
WIDE = ("Wq", "Wk", "Wv", "Wr", "Wo", "bq", "bk", "bv")
SHARED = ("Wk", "Wv", "bk", "bv")  # by the heads of a group
# The same for blocks of units; all have U entries for each.
UNIT_AXIS = {"ffn.W1": 1, "ffn.Wg": 1, "ffn.b1": 0, "ffn.bg": 0, "ffn.W2": 0}
# The matrices that what a head or a block has made is multiplied by, after its gate, and the biases that follow.
OUTPUTS = {"Wo": "bo", "net.pv": "net.bo"}
UNIT_OUTPUTS = {"ffn.W2": "ffn.b2"}


# The parameters of each norm, (D,), in the order of its operation's arguments.
NORMS: dict[str | None, tuple[str, ...]] = {"layernorm": ("scale", "bias"), "rmsnorm": ("scale",)}


def parameter_shapes(config: ModelConfig, gated: bool = False) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter, in the order of the forward pass; with `log_alpha` if `gated`."""
    D, Dh, N, F, T, M = config.D, config.Dh, config.N, config.F, config.T, config.M
    shapes = embedding_shapes(config)
    if config.positions == "relative":
        shapes["R"] = (M + T, D)
    elif config.positions == "learned":
        shapes["positions"] = (T, D)
    for i, H in enumerate(config.heads):
        layer: dict[str, tuple[int, ...]] = norm_shapes(config, "ln")
        K = len(config.kv_ids(i))
        layer |= {"Wq": (D, H * Dh), "Wk": (D, K * Dh), "Wv": (D, K * Dh)}
        if config.biased_projections:
            layer |= {"bq": (H * Dh,), "bk": (K * Dh,), "bv": (K * Dh,)}
        if config.head_norms:
            layer |= norm_shapes(config, "q_norm", Dh) | norm_shapes(config, "k_norm", Dh)
        if config.relative:
            layer |= {"Wr": (D, H * Dh), "u": (H, Dh), "w": (H, Dh)}
        if config.attended:
            layer |= {"pk": (H, N, Dh), "pv": (H, N, Dh)}
        layer["Wo"] = (H * Dh, D)
        if config.biased_outputs:
            layer["bo"] = (D,)
        if gated:
            layer["log_alpha"] = (H,)
        if config.networks:
            layer |= norm_shapes(config, "net.ln")
            layer |= {"net.pk": (H, N, D), "net.pb": (H, N), "net.pv": (H, N, D), "net.bo": (D,)}
        if F:
            layer |= norm_shapes(config, "ffn.ln") | feedforward_shapes(config, i)
            if gated and config.U:
                layer["ffn.log_alpha"] = (config.blocks[i],)
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes | norm_shapes(config, "ln") | softmax_shapes(config)


def norm_shapes(config: ModelConfig, prefix: str, width: int = 0) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a norm's parameters, PREFIX.scale and, for LayerNorm, PREFIX.bias, (width or D,)."""
    return {f"{prefix}.{name}": (width or config.D,) for name in NORMS[config.norm]}


def feedforward_shapes(config: ModelConfig, i: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters of layer i's feed-forward block, without its norm."""
    D, F = config.D, config.width(i)
    matrices = {"W1": (D, F)}
    if config.feedforward == "swiglu":
        matrices["Wg"] = (D, F)
    matrices["W2"] = (F, D)
    shapes: dict[str, tuple[int, ...]] = {}
    for W, shape in matrices.items():
        shapes[f"ffn.{W}"] = shape
        if config.biased_outputs:
            shapes[f"ffn.b{W[1]}"] = shape[1:]
    return shapes


def init_parameters(config: ModelConfig, rng: np.random.Generator, dtype: type = np.float32) -> Parameters:
    """Draw a new model's parameters.

    Embeddings, positions and the output side's own matrices (the adaptive softmax's projections and cluster vectors)
    are uniform(±√(1/D)); the layers' matrices, Wo among them, and persistent vectors uniform(±init_gain·√(1/(D·L))).
    Norms start as the identity, all biases at 0.

    Args:
        config: with V set.
        rng: drawn from in the order of `parameter_shapes`, so that the same seed gives the same model.
        dtype: np.float32 or np.float64.

    Raises:
        ValueError: if the vocabulary's size V is not set.
    """
    if not config.V:
        raise ValueError("config.V must be set to make a model, got 0")
    params: Parameters = {}
    for name, shape in parameter_shapes(config).items():
        last = name.split(".")[-1]
        if last == "scale":
            value = np.ones(shape)
        elif is_bias(name):
            value = np.zeros(shape)
        else:
            bound = math.sqrt(1 / config.D)
            if name.startswith("layers."):
                bound = config.init_gain * math.sqrt(1 / (config.D * config.L))
            value = rng.uniform(-bound, bound, shape)
        params[name] = value.astype(dtype)
    return params


def is_bias(name: str) -> bool:
    """Return whether a parameter is added: bq … bo, b1, bg, b2, pb, u, w, LayerNorm's bias, the softmax's biases."""
    biases = {"bias", "bq", "bk", "bv", "bo", "b1", "bg", "b2", "pb", "u", "w"}
    return name.split(".")[-1] in biases or name.startswith("out_bias")


@lru_cache(maxsize=256)
def layer_names(names: tuple[str, ...], i: int) -> dict[str, str]:
    """Return the names of layer i's parameters by their short names; looking for them in every step takes time."""
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def layer_parameters(params: Parameters, i: int) -> Parameters:
    """Return the parameters of layer i under their short names; the arrays are shared, not copied."""
    return {short: params[name] for short, name in layer_names(tuple(params), i).items()}


def take_heads(
    layer: Parameters,
    heads: Sequence[int] | NDArray,
    Dh: int,
    take: Callable[..., NDArray] = take_slices,
    groups: Sequence[int] | None = None,
) -> Parameters:
    """Return a layer with only the given heads: copies of their slices, and all other parameters as they are.

    Args:
        layer: its parameters, by short name.
        heads: their numbers, rising.
        Dh: head width.
        take: a backend's `take_slices`.
        groups: `ModelConfig.groups` of the layer.
    """
    taken = dict(layer)
    numbers = dict.fromkeys(HEAD_AXIS, heads) | dict.fromkeys(SHARED, read_by(heads, groups))
    for name, axis in HEAD_AXIS.items():
        if name in layer:
            taken[name] = take(layer[name], numbers[name], axis, entries_of_a_head(name, Dh))
    return taken


def put_heads(
    grads: Parameters,
    heads: Sequence[int] | NDArray,
    H: int,
    Dh: int,
    put: Callable[..., NDArray] = put_slices,
    groups: Sequence[int] | None = None,
) -> Parameters:
    """Reverse `take_heads` for gradients: the heads left out get zeros.

    Args:
        grads: by short name, of the taken heads.
        heads: their numbers in the whole layer, rising.
        H: heads of the whole layer.
        Dh: head width.
        put: a backend's `put_slices`.
        groups: `ModelConfig.groups` of the whole layer.
    """
    whole = dict(grads)
    shared = read_by(heads, groups), H if groups is None else max(groups) + 1
    places = dict.fromkeys(HEAD_AXIS, (heads, H)) | dict.fromkeys(SHARED, shared)
    for name, axis in HEAD_AXIS.items():
        if name in grads:
            numbers, count = places[name]
            whole[name] = put(grads[name], numbers, axis, count, entries_of_a_head(name, Dh))
    return whole


def entries_of_a_head(name: str, Dh: int) -> int:
    """Return how many entries of a parameter, along its axis of heads, belong to each head."""
    return Dh if name in WIDE else 1


def read_by(heads: Sequence[int] | NDArray, groups: Sequence[int] | None) -> Sequence[int] | NDArray:
    """Return the numbers of the key-value heads that the given heads read, rising; without groups their own."""
    return heads if groups is None else sorted({groups[h] for h in heads})


def take_blocks(
    layer: Parameters, blocks: Sequence[int] | NDArray, U: int, take: Callable[..., NDArray] = take_slices
) -> Parameters:
    """Return a layer with only the given blocks of U units, as `take_heads` does with heads."""
    taken = dict(layer)
    for name, axis in UNIT_AXIS.items():
        if name in layer:
            taken[name] = take(layer[name], blocks, axis, U)
    return taken


def put_blocks(
    grads: Parameters, blocks: Sequence[int] | NDArray, count: int, U: int, put: Callable[..., NDArray] = put_slices
) -> Parameters:
    """Reverse `take_blocks` for gradients of a layer with `count` blocks: those left out get zeros."""
    whole = dict(grads)
    for name, axis in UNIT_AXIS.items():
        if name in grads:
            whole[name] = put(grads[name], blocks, axis, count, U)
    return whole
