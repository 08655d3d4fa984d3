"""The language model: its forward and backward pass, built from operations.

    x⁰ = embedding(ids) (+ positions, where they are learned)             (B, T, D)
    xˡ⁺¹ = attention block of xˡ with memory mˡ (, then a feed-forward block, which the heads may own)
    h = norm(x^L)
    loss = cross-entropy of h · embeddingᵀ + out_bias against the next tokens

The segment's layer inputs, joined to the memory before them, become the next segment's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.kernels.backend import Backend
from tinyprune.model import vocabulary
from tinyprune.model.feedforward import feedforward_block_backward, feedforward_block_forward
from tinyprune.model.gating import LayerGates, gate_names, gates_backward, gates_forward, put_active, take_active
from tinyprune.model.layers import attention_block_backward, attention_block_forward
from tinyprune.model.memory import Memory, Released, check_memory, remember
from tinyprune.model.norms import norm_backward, norm_forward
from tinyprune.model.parameters import Parameters, layer_parameters, parameter_shapes


@dataclass
class Transformer:
    """A language model has a `config` and `params`; with `gate` set, all heads have gates (`log_alpha`).

    Raises:
        ValueError: if the parameters do not fit the configuration.
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
        keep: Callable[[int, NDArray, NDArray], None] | None = None,
    ) -> tuple[NDArray, Memory, dict[str, Any]]:
        """Return the hidden states of a segment.

        Args:
            ids: tokens, integers in 0 … V−1, (B, T) with T up to the configured one.
            memory: for each layer its inputs before the segment, (B, up to M, D); None at the start of a text. A list
                that is `Released` is emptied.
            rng: noise of gates and dropout while training; None for evaluation.
            all_heads: compute closed heads too. Otherwise a head whose gate is shut and (in training) cannot move is
                left out and costs nothing.
            frozen: whether `backward` is to return the gradients of the gates alone. What only the others need is then
                neither kept nor computed, except for norms, persistent vectors and an adaptive vocabulary.
            keep: called with each layer's number and the keys and values that its heads read, (B, S, H, Dh). What the
                layers need for `backward` is then not kept.

        Returns:
            h: (B, T, D), after the last norm.
            memory: for the next segment; do not modify it, since the cache shares it.
            cache: for `backward`; `cache["layers"][i]["attention"].o` holds layer i's head outputs before their gates,
                (B, T, H, Dh), `cache["ffn"][i]["networks"].r` the units of its heads' networks, (B, T, H·N), and
                `cache["gates"][i]` its gates.

        Raises:
            ValueError: if an id is out of range, T too long, or the memory does not fit this model and batch.
        """
        config, ops, p = self.config, self.ops, self.params
        if ids.shape[1] > config.T:
            raise ValueError(f"ids must have at most T = {config.T} positions, got {ids.shape}")
        check_memory(memory, ids.shape[0], config)
        cache: dict[str, Any] = {"layers": [], "ffn": [], "frozen": frozen}
        new_memory: Memory = []
        x, cache["embedding"] = self.embed(ids, rng)
        if config.positions == "learned":
            x, cache["positions"] = ops.positions_forward(x, p["positions"])
        cache["gates"] = [None] * config.L
        if self.gate is not None:
            cache["gates"], cache["gate"] = gates_forward(p, config.heads, self.gate, ops, rng, all_heads)
        for i, gates in enumerate(cache["gates"]):
            layer, gate, scale, groups = take_active(layer_parameters(p, i), gates, config.groups(i), config.Dh, ops)
            m = (memory.pop(0) if isinstance(memory, Released) else memory[i]) if memory else None
            given = x, m, layer, p.get("R"), gate, scale
            y, context, block = attention_block_forward(
                *given, config, ops, rng, groups, frozen, keep and partial(keep, i)
            )
            del m, given
            if config.M:
                new_memory.append(remember(x, context, config.M))
            x = y
            if keep is None:
                cache["layers"].append(block)
            if config.two_blocks:
                x, block = feedforward_block_forward(x, layer, gate, scale, config, ops, rng, frozen)
                if keep is None:
                    cache["ffn"].append(block)
        h, cache["ln"] = norm_forward(x, p, "ln", config, ops)
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
    ) -> tuple[np.inexact, Memory, dict[str, Any]]:
        """Return the mean cross-entropy, in nats per token, of predicting `targets` (B, T) from `ids` (B, T).

        Other arguments and results are `forward`'s. `soft`: with `teacher` and `share` it is `ops.distillation`'s loss.
        """
        h, new_memory, cache = self.forward(ids, memory, rng, all_heads=all_heads, frozen=frozen)
        given = h, targets, self.params, self.config, self.ops
        loss, cache["softmax"] = vocabulary.predict_forward(*given, frozen=frozen, **soft)
        return loss, new_memory, cache

    def backward(self, dloss: float, cache: dict[str, Any], *, once: bool = False) -> Parameters:
        """Return the gradients of `loss` with respect to every parameter, by name; if `frozen`, to every `log_alpha`.

        Args:
            dloss: gradient with respect to the loss, usually 1.
            cache: of the call to `loss`.
            once: whether the cache serves this call alone: the gradient of the logits is then taken out of it and
                freed before the layers need memory.
        """
        return self.backward_with_gates(dloss, cache, once=once)[0]

    def backward_with_gates(
        self, dloss: float, cache: dict[str, Any], *, once: bool = False
    ) -> tuple[Parameters, list[NDArray]]:
        """Return the gradients of `backward`, and ∂loss/∂g_h of every gate's value, (H,) for each layer if gated.

        A head that was left out of the forward pass has 0 there.
        """
        config, ops, p = self.config, self.ops, self.params
        # loss = cross_entropy(h Eᵀ + out_bias, targets)
        softmax = cache.pop("softmax") if once else cache["softmax"]
        dh, grads = vocabulary.predict_backward(dloss, softmax, config, ops)
        del softmax
        # h = norm(x)
        dx, dnorm = norm_backward(dh, cache["ln"], "ln", ops)
        grads |= dnorm
        del dh  # free it before the layers allocate their memory
        dRs: list[NDArray] = []
        dvalues: list[NDArray] = []
        for i in reversed(range(config.L)):
            dlayer: Parameters = {}
            dgate_networks: NDArray | None = None
            if config.two_blocks:
                dx, dlayer, dgate_networks = feedforward_block_backward(dx, cache["ffn"][i], ops)
            dx, dp, dR_layer, dgate = attention_block_backward(dx, cache["layers"][i], ops)
            dlayer = {name: g for name, g in (dlayer | dp).items() if g is not None}
            if dgate is not None and dgate_networks is not None:
                dgate = ops.add(dgate, dgate_networks)  # both blocks of a layer read its gates
            gates = cache["gates"][i]
            if gates is not None and dgate is not None:
                dlayer, dgate = put_active(dlayer, dgate, gates, config.groups(i), config.Dh, ops)
                dvalues.insert(0, dgate)
            if dR_layer is not None:
                dRs.append(dR_layer)
            grads |= {f"layers.{i}.{name}": g for name, g in dlayer.items()}
        if self.gate is not None:
            dlog_alphas = gates_backward(dvalues, self.gate, ops, cache["gate"])
            gate_grads = dict(zip(gate_names(config.L), dlog_alphas, strict=True))
            if cache["frozen"]:
                return gate_grads, dvalues
            grads |= gate_grads
        if dRs:
            dR = ops.add(*dRs) if len(dRs) > 1 else dRs[0]  # all layers read the same rows of R
            # rows of R beyond the segment's context were not read: zeros
            grads["R"] = dR if len(dR) == len(p["R"]) else ops.put_slices(dR, range(len(dR)), 0, len(p["R"]))
        if "positions" in cache:
            # x = positions(x, P)
            dx, grads["positions"] = ops.positions_backward(dx, cache["positions"])
        # tied tables are used twice, on the way in and on the way out
        for name, g in vocabulary.embed_backward(dx, cache["embedding"], config, ops).items():
            grads[name] = ops.add(g, grads[name]) if name in grads else g
        return {name: grads[name] for name in p}, dvalues

    def embed(self, ids: NDArray, rng: np.random.Generator | None = None) -> tuple[NDArray, tuple]:
        """Embed tokens: return (*ids.shape, D) and the cache. `rng` is None in evaluation."""
        return vocabulary.embed_forward(ids, self.params, self.config, self.ops, rng)

    def log_probabilities(self, h: NDArray) -> NDArray:
        """Return log p of every next token, (…, V), from hidden states (…, D)."""
        return vocabulary.log_probabilities(h, self.params, self.config, self.ops)

    def host_params(self) -> Parameters:
        """Return the parameters in main memory: copies from a GPU, otherwise the model's own arrays."""
        return {name: self.ops.to_host(value) for name, value in self.params.items()}

    def gates(self, rng: np.random.Generator | None = None, all_heads: bool = False) -> list[LayerGates | None]:
        """Return each layer's gates, sampled with `rng` or evaluated if it is None; a list of None without gates."""
        if self.gate is None:
            return [None] * self.config.L
        return gates_forward(self.params, self.config.heads, self.gate, self.ops, rng, all_heads)[0]
