"""The language model: operations wired into forward and backward.

    x⁰ = embedding(ids) (+ positions, for the plain Transformer)          (B, T, D)
    xˡ⁺¹ = attention block of xˡ with memory mˡ (, then feed-forward block)
    h = LayerNorm(x^L)
    loss = cross-entropy of h · embeddingᵀ + out_bias against the next tokens

The segment's layer inputs, behind the memory they were read with, become the next segment's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model.gating import LayerGates, gates_backward, gates_forward
from tinyprune.model.layers import (
    attention_block_backward,
    attention_block_forward,
    feedforward_block_backward,
    feedforward_block_forward,
)
from tinyprune.model.parameters import Parameters, layer_parameters, parameter_shapes, put_heads, take_heads

Memory = list[NDArray]  # for each layer (B, up to M, D)


@dataclass
class Transformer:
    """A language model: `config` and `params`; with `gate` set, every layer's heads carry gates (`log_alpha`).

    Raises:
        ValueError: if the parameters are not those of the configuration.
    """

    config: ModelConfig
    params: Parameters
    gate: GateConfig | None = None
    ops: Backend = field(default_factory=Backend)

    def __post_init__(self) -> None:
        shapes = parameter_shapes(self.config, gated=self.gate is not None)
        for name in (*shapes, *self.params):
            if name not in shapes:
                raise ValueError(f"params[{name!r}] is not a parameter of this configuration")
            got = self.params[name].shape if name in self.params else None
            if got != shapes[name]:
                raise ValueError(f"params[{name!r}] must have shape {shapes[name]}, got {got}")
        # Where the backend computes is where they live; what lies there already is not copied.
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
    ) -> tuple[NDArray, Memory, dict[str, Any]]:
        """Hidden states of a segment.

        Args:
            ids: tokens, integers in 0 … V−1, (B, T) with T up to the configured one.
            memory: for each layer its inputs before the segment, (B, up to M, D); None at the start of a text.
            rng: noise of gates and dropout while training; None for evaluation.
            all_heads: compute closed heads too. Otherwise a head whose gate is shut, and in training cannot move
                either, costs nothing: it is left out.

        Returns:
            h: (B, T, D), after the last LayerNorm.
            memory: for the next segment; not to be modified, since the cache shares it.
            cache: for `backward`; `cache["layers"][i]["attention"].o` holds layer i's head outputs before their gates,
                (B, T, H, Dh), `cache["gates"][i]` its gates.

        Raises:
            ValueError: if an id is out of range, T too long, or the memory not that of this model and batch.
        """
        config, ops, p = self.config, self.ops, self.params
        T = ids.shape[1]
        if T > config.T:
            raise ValueError(f"ids must have at most T = {config.T} positions, got {ids.shape}")
        check_memory(memory, ids.shape[0], config)
        cache: dict[str, Any] = {"layers": [], "ffn": []}
        x, cache["embedding"] = self.embed(ids, rng)
        if not config.relative:
            x, cache["positions"] = ops.positions_forward(x, p["positions"])
        cache["gates"], cache["gate"] = self.gates_forward(rng, all_heads)
        new_memory: Memory = []
        for i in range(config.L):
            layer = layer_parameters(p, i)
            gates = cache["gates"][i]
            gate, scale = None, 1.0
            if gates is not None:
                if gates.active.size < gates.values.size:
                    layer = take_heads(layer, gates.active, config.Dh, ops.take_slices)
                    gate = ops.take_slices(gates.gate, gates.active, 0)
                else:
                    gate = gates.gate
                scale = gates.scale
            m = memory[i] if memory else None
            y, context, block = attention_block_forward(x, m, layer, p.get("R"), gate, scale, config, ops, rng)
            if config.M:
                new_memory.append(remember(x, context, config.M))
            x = y
            cache["layers"].append(block)
            if config.F:
                x, block = feedforward_block_forward(x, layer, config, ops, rng)
                cache["ffn"].append(block)
        h, cache["ln"] = ops.layernorm_forward(x, p["ln.scale"], p["ln.bias"])
        return h, new_memory, cache

    def embed(self, ids: NDArray, rng: np.random.Generator | None = None) -> tuple[NDArray, tuple]:
        """Embeddings of tokens, (*ids.shape, D), and their operation's cache. `rng` None: evaluation."""
        options = {"dropout": self.config.dropout_embedding, "rng": rng}
        if self.config.cutoffs:
            return self.ops.adaptive_embedding_forward(ids, *self.clusters(), **options)
        return self.ops.embedding_forward(ids, self.params["embedding"], **options)

    def loss(
        self,
        ids: NDArray,
        targets: NDArray,
        memory: Memory | None = None,
        rng: np.random.Generator | None = None,
        *,
        all_heads: bool = False,
    ) -> tuple[np.inexact, Memory, dict[str, Any]]:
        """Mean cross-entropy in nats a token of predicting `targets` (B, T) from `ids` (B, T).

        Arguments and the other results are those of `forward`.
        """
        h, new_memory, cache = self.forward(ids, memory, rng, all_heads=all_heads)
        p = self.params
        if self.config.cutoffs:
            loss, cache["softmax"] = self.ops.adaptive_softmax_forward(h, targets, *self.softmax_arguments())
        else:
            logits, cache["output"] = self.ops.linear_forward(h, p["embedding"].T, p["out_bias"])
            loss, cache["softmax"] = self.ops.cross_entropy_forward(logits, targets, overwrite=True)
        return loss, new_memory, cache

    def log_probabilities(self, h: NDArray) -> NDArray:
        """log p of every next token, (B, T, V), from hidden states (B, T, D)."""
        if self.config.cutoffs:
            return self.ops.adaptive_log_probabilities(h, *self.softmax_arguments())
        logits, _ = self.ops.linear_forward(h, self.params["embedding"].T, self.params["out_bias"])
        return self.ops.log_softmax(logits)

    def backward(self, dloss: float, cache: dict[str, Any]) -> Parameters:
        """Gradients of `loss` with respect to every parameter, by name.

        Args:
            dloss: gradient with respect to the loss, usually 1.
            cache: of the call to `loss`.
        """
        return self.backward_with_gates(dloss, cache)[0]

    def backward_with_gates(self, dloss: float, cache: dict[str, Any]) -> tuple[Parameters, list[NDArray]]:
        """The same, and ∂loss/∂g_h of every gate's value, (H,) for each layer; none without gates.

        A head that was left out of the forward pass has 0 there.
        """
        config, ops, p = self.config, self.ops, self.params
        grads: Parameters = {}
        if config.cutoffs:
            dh, dtables, dprojections, grads["cluster.weight"], grads["cluster.bias"], dbiases = (
                ops.adaptive_softmax_backward(dloss, cache["softmax"])
            )
            grads |= {f"out_bias.{c}": g for c, g in enumerate(dbiases)}
        else:
            dlogits = ops.cross_entropy_backward(dloss, cache["softmax"])
            dh, dE, grads["out_bias"] = ops.linear_backward(dlogits, cache["output"])
        # h = LayerNorm(x)
        dx, grads["ln.scale"], grads["ln.bias"] = ops.layernorm_backward(dh, cache["ln"])
        del dh  # not to be kept while the layers take their memory
        dR: NDArray | None = None
        dvalues: list[NDArray] = []
        for i in reversed(range(config.L)):
            dlayer: Parameters = {}
            if config.F:
                dx, dlayer = feedforward_block_backward(dx, cache["ffn"][i], ops)
            dx, dp, dR_layer, dgate = attention_block_backward(dx, cache["layers"][i], ops)
            dlayer |= dp
            gates = cache["gates"][i]
            if gates is not None:
                if gates.active.size < gates.values.size:  # heads that were left out have no part in the loss
                    dlayer = put_heads(dlayer, gates.active, gates.values.size, config.Dh, ops.put_slices)
                    dgate = ops.put_slices(dgate, gates.active, 0, gates.values.size)
                dvalues.insert(0, dgate)
            if dR_layer is not None:
                # all layers read the same rows of R
                dR = dR_layer if dR is None else ops.add(dR, dR_layer)
            grads |= {f"layers.{i}.{name}": g for name, g in dlayer.items()}
        if self.gate is not None:
            for i, dlog_alpha in enumerate(gates_backward(dvalues, self.gate, ops, cache["gate"])):
                grads[f"layers.{i}.log_alpha"] = dlog_alpha
        if config.relative:
            # rows of R beyond the segment's context were not read: zeros
            grads["R"] = dR if len(dR) == len(p["R"]) else ops.put_slices(dR, range(len(dR)), 0, len(p["R"]))
        else:
            # x = positions(x, P)
            dx, grads["positions"] = ops.positions_backward(dx, cache["positions"])
        # The embeddings are used twice, on the way in and on the way out.
        if config.cutoffs:
            dtables_in, dprojections_in = ops.adaptive_embedding_backward(dx, cache["embedding"])
            pairs = zip(dtables, dtables_in, strict=True)
            grads |= {f"embedding.{c}": ops.add(a, b) for c, (a, b) in enumerate(pairs)}
            pairs = zip(dprojections, dprojections_in, strict=True)
            grads |= {f"projection.{c}": ops.add(a, b) for c, (a, b) in enumerate(pairs, start=1)}
        else:
            grads["embedding"] = ops.add(ops.embedding_backward(dx, cache["embedding"]), dE.T)
        return {name: grads[name] for name in p}, dvalues

    def host_params(self) -> Parameters:
        """The parameters in main memory: copies of those of a GPU, otherwise the model's own arrays."""
        return {name: self.ops.to_host(value) for name, value in self.params.items()}

    def gates(self, rng: np.random.Generator | None = None, all_heads: bool = False) -> list[LayerGates | None]:
        """Each layer's gates: sampled with `rng`, or evaluated when it is None; a list of None without gates."""
        return self.gates_forward(rng, all_heads)[0]

    def gates_forward(
        self, rng: np.random.Generator | None, all_heads: bool
    ) -> tuple[list[LayerGates | None], tuple | None]:
        """The same, with what `backward` needs of it."""
        if self.gate is None:
            return [None] * self.config.L, None
        return gates_forward(self.params, self.config.heads, self.gate, self.ops, rng, all_heads)

    def clusters(self) -> tuple[list[NDArray], list[NDArray]]:
        """Tables and projections of the adaptive embedding."""
        C = len(self.config.cutoffs)
        tables = [self.params[f"embedding.{c}"] for c in range(C + 1)]
        return tables, [self.params[f"projection.{c}"] for c in range(1, C + 1)]

    def softmax_arguments(self) -> tuple:
        """The adaptive softmax's parameters, in its order."""
        p = self.params
        biases = [p[f"out_bias.{c}"] for c in range(len(self.config.cutoffs) + 1)]
        return (*self.clusters(), p["cluster.weight"], p["cluster.bias"], biases)


def check_memory(memory: Memory | None, B: int, config: ModelConfig) -> None:
    """Raise ValueError unless `memory` is None, empty, or one (B, up to M, D) for each layer."""
    if not memory:
        return
    good = (m.ndim == 3 and m.shape[0] == B and m.shape[1] <= config.M and m.shape[2] == config.D for m in memory)
    if len(memory) != config.L or not all(good):
        raise ValueError(
            f"memory must be {config.L} arrays of ({B}, up to {config.M}, {config.D}), got {[m.shape for m in memory]}"
        )


def remember(x: NDArray, context: NDArray, M: int) -> NDArray:
    """The latest M of a layer's inputs as plain numbers: no derivative is carried on.

    Args:
        x: the segment's, (B, T, D).
        context: those of memory and segment, (B, S, D).

    Returns:
        (B, up to M, D), a view and not a copy, of x if that is long enough: then nothing else is kept alive.
    """
    latest = x if x.shape[1] >= M else context
    return latest[:, -M:].real
