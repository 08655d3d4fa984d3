"""The language model: its forward and backward pass, built from operations.

    x⁰ = embedding(ids) (+ positions, where they are learned)             (B, T, D)
    xˡ⁺¹ = attention block of xˡ with memory mˡ (, then a feed-forward block, which the heads may own)
    h = norm(x^L)
    loss = cross-entropy of h · embeddingᵀ + out_bias against the next tokens

The segment's layer inputs, joined to the memory before them, become the next segment's memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import DataConfig, GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.model import vocabulary
from tinyprune.model.blocks import (
    FEEDFORWARD,
    AttentionBlockCache,
    Layer,
    SecondBlockCache,
    attention_block_backward,
    attention_block_forward,
    norm_backward,
    norm_forward,
    second_block_backward,
    second_block_forward,
)
from tinyprune.model.counting import MUCH
from tinyprune.model.gates import (
    LayerGates,
    gates_backward,
    gates_forward,
    put_active,
    take_active,
    take_active_blocks,
)
from tinyprune.model.parameters import (
    Parameters,
    layer_parameters,
    parameter_shapes,
    put_blocks,
    put_heads,
)
from tinyprune.ops.engine import Engine


def engine_in(ops: Engine, precision: str) -> Engine:
    """Return the engine with products in this precision. Raises UsageError if it is none of the engine's."""
    if precision not in ops.precisions:
        known = f"{', '.join(ops.precisions)} with --backend {ops.name}"
        raise UsageError(f"precision must be {known}, for only numba computes in bf16; got {precision}")
    return ops.in_precision(precision)


# For each layer its inputs before the segment, (B, up to M, D). (Dai et al. 2019)
Memory = list[NDArray]


class Released(Memory):
    """Memory whose arrays may be consumed: each layer pops its entry, which frees it before backward."""


@dataclass
class Cache:
    """What `Transformer.backward` needs of one forward pass.

    Attributes:
        frozen: whether only the gates get gradients.
        gates: of the heads of each layer, then of the blocks of units of each, or None.
        gate: cache of the operation that makes the gates.
        embedding, positions, norm, softmax: caches of the operations before the first layer and after the last.
        attention_blocks: of each layer; `attention_blocks[i].attention.o` holds the head outputs before their gates,
            (B, T, H, Dh).
        second_blocks: of each layer, or None; see `gated_outputs`.
        inputs: instead of both, where layers are recomputed, what each has read: x (B, T, D) and its memory.
    """

    frozen: bool
    gates: list[LayerGates | None]
    gate: Any
    embedding: Any
    positions: Any
    attention_blocks: list[AttentionBlockCache] = field(default_factory=list)
    second_blocks: list[SecondBlockCache | None] = field(default_factory=list)
    inputs: list[tuple[NDArray, NDArray | None]] = field(default_factory=list)
    norm: Any = None
    softmax: Any = None


@dataclass(frozen=True)
class Origin:
    """The text that a model was made for, by which it can be saved, and write."""

    tokenizer: Any  # see `tinyprune.data.Tokenizer`
    data: DataConfig
    digest: str  # sha256 of the text
    # B, and after how many steps of B segments the last stage has stopped
    read: tuple[int, int] | None = None


@dataclass(repr=False)
class Transformer:
    """A language model. If `gate` is set, every head, and every block of units, has a gate (`log_alpha`).

    Attributes:
        config: sizes and kind.
        params: by name, in the engine's memory.
        gate: kind of gates, or None.
        ops: the engine.
        origin: the text that it was made for, if it is known.

    Raises:
        ValueError: if the parameters do not fit the configuration.
    """

    config: ModelConfig
    params: Parameters
    gate: GateConfig | None = None
    ops: Engine = field(default_factory=Engine)
    origin: Origin | None = None

    def in_precision(self, precision: str) -> Self:
        """Return the model, of the same parameters, with matrix products in this precision, of `config.PRECISIONS`.

        Raises UsageError if its engine has none such.
        """
        if precision == self.ops.precision:
            return self
        return dataclasses.replace(self, ops=engine_in(self.ops, precision))

    def __repr__(self) -> str:
        config = self.config
        parts = [f"{config.kind}, {config.L} layers, {sum(config.heads)} of {config.heads_total} heads"]
        if config.U:
            parts.append(f"{sum(config.blocks)} of {config.L * config.F // config.U} blocks of {config.U} units")
        parts.append(f"{sum(math.prod(x.shape) for x in self.params.values()):,} parameters")
        if self.gate is not None:
            parts.append("gates")
        return f"Transformer({', '.join(parts)}; {self.ops.name})"

    def __post_init__(self) -> None:
        if not isinstance(self.ops, Engine):
            raise ValueError(f"ops must be an engine, as from get_backend, got {self.ops!r}")
        shapes = parameter_shapes(self.config, gated=self.gate is not None)
        for name in (*shapes, *self.params):
            if name not in shapes:
                raise ValueError(f"params[{name!r}] is not a parameter of this configuration")
            got = getattr(self.params.get(name), "shape", None)
            if got != shapes[name]:
                raise ValueError(f"params[{name!r}] must have shape {shapes[name]}, got {got}")
        # Parameters live where the backend computes; those already there are not copied.
        placed = {name: self.ops.to_device(value) for name, value in self.params.items()}
        if any(placed[name] is not value for name, value in self.params.items()):
            self.params = placed

    def forward(
        self,
        ids: NDArray,
        memory: Memory | None = None,
        rng: np.random.Generator | None = None,
        *,
        all_heads: bool = False,
        frozen: bool = False,
        recompute: bool = False,
        store_kv: Callable[[int, NDArray, NDArray], None] | None = None,
        after_layer: Callable[[], None] | None = None,
    ) -> tuple[NDArray, Memory, Cache]:
        """Return the hidden states of a segment.

        Args:
            ids: tokens, integers in 0 … V−1, (B, T) with T up to the configured one.
            memory: for each layer its inputs before the segment, (B, up to M, D); None at the start of a text. A list
                that is `Released` is emptied.
            rng: noise of gates and dropout while training; None for evaluation.
            all_heads: compute closed heads and blocks too. Otherwise one whose gate is shut and (in training) cannot
                move is left out and costs nothing.
            frozen: whether `backward` is to return the gradients of the gates alone. What only the others need is then
                neither kept nor computed, except for norms, persistent vectors and an adaptive vocabulary.
            recompute: keep only the inputs of the layers; `backward` computes each layer again from its own, without
                dropout, and so with less memory in more time. (Activation recomputation, Chen et al. 2016, arXiv
                1604.06174; also called gradient checkpointing.)
            store_kv: called with each layer's number and the keys and values that its heads read, (B, S, H, Dh), which
                generation caches.
            after_layer: called after each layer, which has then read its parameters.

        Returns:
            h: (B, T, D), after the last norm.
            memory: for the next segment; do not modify it, since the cache shares it.
            cache: for `backward`.

        Raises:
            ValueError: if an id is out of range, T too long, the memory does not fit this model and batch, or layers
                with dropout are to be recomputed.
        """
        config, ops, p = self.config, self.ops, self.params
        check_segment(ids, memory, config)
        if recompute and rng is not None and (config.dropout or config.dropout_attention):
            raise ValueError("recompute must be False in training with dropout, got True")
        x, embedding, positions = self.enter(ids, rng)
        gates, gate = gates_forward(p, config, self.gate, ops, rng, all_heads)
        cache, new_memory = Cache(frozen, gates, gate, embedding, positions), []
        for i in range(config.L):
            layer = self.layer(i, gates, rng, frozen)
            if store_kv is not None:
                layer = layer._replace(store_kv=partial(store_kv, i))
            read = x, memory_of(memory, i)
            y, context, attention_block = attention_block_forward(*read, layer, config, ops)
            if config.M:
                new_memory.append(remember(x, context, config.M))
            x, second_block = second_block_forward(y, layer, config, ops)
            if recompute:
                cache.inputs.append(read)
            else:
                cache.attention_blocks.append(attention_block)
                cache.second_blocks.append(second_block)
            if after_layer is not None:
                after_layer()
        h, cache.norm = norm_forward(x, p, "ln", config, ops)
        return h, new_memory, cache

    def loss(
        self,
        ids: NDArray,
        targets: NDArray,
        memory: Memory | None = None,
        rng: np.random.Generator | None = None,
        *,
        all_heads: bool = False,
        frozen: bool = False,
        **soft: Any,
    ) -> tuple[np.inexact, Memory, Cache]:
        """Return the mean cross-entropy, in nats per token, of predicting `targets` (B, T) from `ids` (B, T).

        Other arguments and results are `forward`'s. `soft`: with `teacher` and `share`, the loss of `ops.distillation`.
        """
        recompute = self.recomputes(ids, frozen)
        options: dict[str, Any] = {"all_heads": all_heads, "frozen": frozen, "recompute": recompute}
        h, new_memory, cache = self.forward(ids, memory, rng, **options)
        arguments = h, targets, self.params, self.config, self.ops
        loss, cache.softmax = vocabulary.predict_forward(*arguments, frozen=frozen, **soft)
        return loss, new_memory, cache

    def recomputes(self, ids: NDArray, frozen: bool) -> bool:
        """Return whether `loss` recomputes layers: where they would keep much, and the bits are the same."""
        config, much = self.config, MUCH
        if config.dropout or config.dropout_attention or self.ops.on_device:
            return False
        if frozen:  # they keep about half
            much *= 2
        return ids.size * config.D * config.L > much

    def backward(self, dloss: float, cache: Cache, *, once: bool = False) -> Parameters:
        """Return the gradients of `loss` with respect to every parameter, by name; if `frozen`, to every `log_alpha`.

        Args:
            dloss: gradient with respect to the loss, usually 1.
            cache: of the call to `loss`.
            once: whether the cache is used by this call alone: the gradient of the logits is then removed from it, so
                that it is freed before the layers need memory.
        """
        return self.backward_with_gates(dloss, cache, once=once)[0]

    def backward_with_gates(
        self, dloss: float, cache: Cache, *, once: bool = False
    ) -> tuple[Parameters, list[NDArray]]:
        """Return the gradients of `backward`, and ∂loss/∂g of every gate's value, by `model.parts` if gated.

        A head or block that was left out of the forward pass has 0 there.
        """
        config, ops, p = self.config, self.ops, self.params
        grads: Parameters = {}
        # loss = cross_entropy(h Eᵀ + out_bias, targets)
        softmax = cache.softmax
        if once:
            cache.softmax = None
        dh, dsoftmax = vocabulary.predict_backward(dloss, softmax, config, ops)
        accumulate(grads, dsoftmax, ops)
        del softmax
        # h = norm(x)
        dx, dnorm = norm_backward(dh, cache.norm, "ln", config, ops)
        accumulate(grads, dnorm, ops)
        del dh  # free it before the layers allocate their memory
        dheads: list[NDArray] = []
        dblocks: list[NDArray] = []
        for i in reversed(range(config.L)):
            attention_block, second_block = self.layer_caches(i, cache)
            dx, dsecond = second_block_backward(dx, second_block, config, ops)
            dx, dattention = attention_block_backward(dx, attention_block, config, ops)
            dlayer: Parameters = {}
            accumulate(dlayer, dsecond, ops)
            accumulate(dlayer, dattention, ops)  # both blocks read the gates
            dlayer = self.put_layer(i, dlayer, cache.gates)
            if "gate" in dlayer:
                dheads.insert(0, dlayer.pop("gate"))
            if "ffn.gate" in dlayer:
                dblocks.insert(0, dlayer.pop("ffn.gate"))
            accumulate(grads, {"R": dlayer.pop("R", None)}, ops)  # all layers read it
            accumulate(grads, {f"layers.{i}.{name}": g for name, g in dlayer.items()}, ops)
        dgates = dheads + dblocks
        if self.gate is not None:
            dlog_alpha = gates_backward(dgates, config, self.gate, ops, cache.gate)
            if cache.frozen:
                return dlog_alpha, dgates
            accumulate(grads, dlog_alpha, ops)
        # x = embedding(ids) + positions
        dx, dpositions = ops.positions_backward(dx, cache.positions)
        accumulate(grads, {"positions": dpositions}, ops)
        # a tied table is read here and by the softmax
        accumulate(grads, vocabulary.embed_backward(dx, cache.embedding, config, ops), ops)
        return {name: grads[name] for name in p}, dgates

    def layer_caches(self, i: int, cache: Cache) -> tuple[AttentionBlockCache, SecondBlockCache | None]:
        """Return what layer i has kept for `backward`, or recomputes."""
        if not cache.inputs:
            return cache.attention_blocks[i], cache.second_blocks[i]
        layer = self.layer(i, cache.gates, frozen=cache.frozen)
        y, _, attention_block = attention_block_forward(*cache.inputs[i], layer, self.config, self.ops)
        return attention_block, second_block_forward(y, layer, self.config, self.ops)[1]

    def layer(
        self,
        i: int,
        gates: list[LayerGates | None],
        rng: np.random.Generator | None = None,
        frozen: bool = False,
    ) -> Layer:
        """Return what layer i computes with in one pass, without the heads and blocks that its gates leave out."""
        config, heads, blocks = self.config, gates[i], self.of_blocks(gates, i)
        p = layer_parameters(self.params, i)
        p = {name: x for name, x in p.items() if not name.endswith("log_alpha")}
        p, groups = take_active(p, heads, config.groups(i), config.Dh, self.ops)
        p = take_active_blocks(p, blocks, config.U, self.ops)
        if "R" in self.params:
            p["R"] = self.params["R"]
        scale, unit_scale = (1.0 if part is None else part.scale for part in (heads, blocks))
        return Layer(p, scale, unit_scale, groups, rng, frozen)

    def put_layer(self, i: int, grads: Parameters, gates: list[LayerGates | None]) -> Parameters:
        """Reverse `layer` for gradients by short name: the heads and blocks that were left out get zeros."""
        config, put = self.config, self.ops.put_slices

        def heads(grads: Parameters, active: NDArray, H: int) -> Parameters:
            return put_heads(grads, active, H, config.Dh, put, config.groups(i))

        def blocks(grads: Parameters, active: NDArray, count: int) -> Parameters:
            return put_blocks(grads, active, count, config.U, put)

        grads = put_active(grads, gates[i], "gate", heads, self.ops)
        return put_active(grads, self.of_blocks(gates, i), "ffn.gate", blocks, self.ops)

    def of_blocks(self, gates: list[LayerGates | None], i: int) -> LayerGates | None:
        """Return the gates of layer i's blocks of units, or None if it has none."""
        return gates[self.config.L + i] if self.config.U else None

    def enter(self, ids: NDArray, rng: np.random.Generator | None = None) -> tuple[NDArray, Any, Any]:
        """Return what the first layer reads of tokens (B, T), (B, T, D), and the caches of embedding and positions.

        `rng` is None in evaluation.
        """
        x, embedding = self.embed(ids, rng)
        x, positions = self.ops.positions_forward(x, self.params.get("positions"))
        return x, embedding, positions

    def embed(self, ids: NDArray, rng: np.random.Generator | None = None) -> tuple[NDArray, tuple]:
        """Embed tokens: return (*ids.shape, D) and the cache. `rng` is None in evaluation."""
        return vocabulary.embed_forward(ids, self.params, self.config, self.ops, rng)

    def log_probabilities(self, h: NDArray) -> NDArray:
        """Return log p of every next token, (…, V), from hidden states (…, D)."""
        return vocabulary.log_probabilities(h, self.params, self.config, self.ops)

    def log_p(self, ids: NDArray, memory: Memory | None = None) -> NDArray:
        """Return log p of every next token, (B, T, V) in main memory: logits that are normalised already.

        `ids` (B, T) and `memory` are as in `forward`; nothing is drawn.
        """
        return self.ops.to_host(self.log_probabilities(self.forward(ids, memory)[0]))

    def host_params(self) -> Parameters:
        """Return the parameters in main memory: copies from a GPU, otherwise the model's own arrays."""
        return {name: self.ops.to_host(value) for name, value in self.params.items()}

    def gates(self, rng: np.random.Generator | None = None, all_heads: bool = False) -> list[LayerGates | None]:
        """Return the gates of all parts, sampled with `rng` or evaluated if it is None; Nones without gates."""
        return gates_forward(self.params, self.config, self.gate, self.ops, rng, all_heads)[0]


def gated_outputs(model: Transformer, cache: Cache, part: int) -> list[tuple[NDArray, NDArray, NDArray]]:
    """Return what the gates of a part multiply, and the matrix and bias that come after them.

    Args:
        model: the model.
        cache: of its forward pass, with all heads and blocks, and weights that are not frozen.
        part: the heads of layer `part`, or the blocks of units of layer `part` − L, as in `model.parts`.

    Returns:
        the heads' outputs (B, T, H, Dh), Wo (H·Dh, D) and bo (D,), zeros if there is none; if heads have networks also
        their units (B, T, H, N), values (H·N, D) and bias (D,). Or the units of the blocks, W2 and b2.
    """
    config, i = model.config, part % model.config.L
    p, (attention_block, second) = layer_parameters(model.params, i), model.layer_caches(i, cache)

    def bias(name: str) -> NDArray:
        if name in p:
            return p[name]
        return model.ops.to_device(np.zeros(config.D, p["Wo"].dtype))

    if part >= config.L:
        assert second is not None  # of a model with blocks
        h = FEEDFORWARD[config.second].units(second.inside)
        return [(h.reshape(*h.shape[:2], config.blocks[i], config.U), p["ffn.W2"], bias("ffn.b2"))]
    o = attention_block.attention.o
    found = [(o, p["Wo"], bias("bo"))]
    if config.networks:
        H, N, D = p["net.pv"].shape
        assert second is not None  # of a model whose heads have networks
        units = FEEDFORWARD[config.second].units(second.inside).reshape(*o.shape[:2], H, N)
        found.append((units, p["net.pv"].reshape(H * N, D), p["net.bo"]))
    return found


def accumulate(grads: Parameters, more: Mapping[str, NDArray | None], ops: Engine) -> None:
    """Add the gradients `more` to `grads`, by name: a parameter that is read in several places gets their sum."""
    for name, g in more.items():
        if g is not None:
            grads[name] = ops.add(grads[name], g) if name in grads else g


def check_segment(ids: NDArray, memory: Memory | None, config: ModelConfig) -> None:
    """Raise ValueError unless `ids` is (B, up to T), and `memory` None, empty or one (B, up to M, D) for each layer."""
    if not hasattr(ids, "shape") or len(ids.shape) != 2 or 0 in ids.shape:
        got = getattr(ids, "shape", type(ids).__name__)
        raise ValueError(f"ids must be an array of token numbers (B, T), both at least 1, got {got}")
    B, T = ids.shape
    if T > config.T:
        raise ValueError(f"ids must have at most T = {config.T} positions, got {ids.shape}")
    if not memory:
        return
    shapes = [m.shape for m in memory]
    fits = (len(shape) == 3 and shape == (B, min(shape[1], config.M), config.D) for shape in shapes)
    if len(memory) != config.L or not all(fits):
        expected = f"{config.L} arrays of ({B}, up to {config.M}, {config.D})"
        raise ValueError(f"memory must be {expected}, got {shapes}")


def memory_of(memory: Memory | None, i: int) -> NDArray | None:
    """Return layer i's memory, or None; from a list that is `Released` it is removed, for i = 0, 1, … in turn."""
    if not memory:
        return None
    return memory.pop(0) if isinstance(memory, Released) else memory[i]


def remember(x: NDArray, context: NDArray, M: int) -> NDArray:
    """Return the latest M inputs of a layer as plain numbers, without derivatives.

    Args:
        x: the segment's, (B, T, D).
        context: those of memory and segment, (B, S, D).

    Returns:
        (B, up to M, D), a view of x if that is long enough, so that `context` can be freed.
    """
    latest = x if x.shape[1] >= M else context
    return latest[:, -M:].real
