"""The workloads of `tinyprune bench pretrained`: a model from a folder, as we compute it and as transformers does."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload
from tinyprune.kernels.backend import get_backend
from tinyprune.model.generation import generate
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import read_pretrained
from tinyprune.pruning.importance import with_heads

NEW = 32  # tokens in a turn
PROMPT = 12  # tokens before them


def text(V: int, B: int, T: int) -> NDArray[np.int64]:
    """Random tokens, (B, T + 1)."""
    return np.random.default_rng(0).integers(0, V, (B, T + 1))


@cache
def our_model(folder: str, T: int, backend: str) -> Transformer:
    """Read the model once for all cases."""
    read = read_pretrained(folder)
    return Transformer(dataclasses.replace(read.config, T=T), read.params, ops=get_backend(backend))


def ours(what: str, folder: str, B: int, T: int, backend: str) -> Workload:
    """Return one of the benchmark's three computations."""
    model = our_model(folder, T, backend)
    tokens = text(model.config.V, B, T)
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    if what == "forward":
        return Workload(lambda: model.loss(ids, targets), lambda: {"loss": np.array(model.loss(ids, targets)[0])})
    if what == "generate":

        def write() -> dict[str, NDArray]:
            new = generate(model, tokens[0, :PROMPT], NEW, np.random.default_rng(0), temperature=0)
            return {"tokens": np.array(list(new))}

        return Workload(write, write, units=NEW)
    gated = with_heads(model)

    def gates() -> dict[str, NDArray]:
        _, _, kept = gated.loss(ids, targets, frozen=True)
        return {"dgates": np.array(gated.backward_with_gates(1.0, kept)[1])}

    return Workload(gates, gates)


@cache
def their_model(folder: str) -> Any:
    """Read the model once for all cases, its weights frozen."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.requires_grad_(False)


def transformers(what: str, folder: str, B: int, T: int) -> Workload:
    """Return the same with transformers; a gate is a factor of a head's output, put there by a hook."""
    import torch
    from torch.nn.functional import cross_entropy

    model = their_model(folder)
    tokens = torch.from_numpy(text(model.config.vocab_size, B, T))
    ids, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def loss() -> torch.Tensor:
        return cross_entropy(model(ids).logits.flatten(0, 1), targets)

    if what == "forward":
        loss_alone = torch.no_grad()(loss)
        return Workload(loss_alone, lambda: {"loss": loss_alone().numpy()})
    if what == "generate":
        prompt = tokens[:1, :PROMPT]

        def write() -> dict[str, NDArray]:
            options = {"attention_mask": torch.ones_like(prompt), "min_new_tokens": NEW, "max_new_tokens": NEW}
            return {"tokens": model.generate(prompt, do_sample=False, **options)[0, PROMPT:].numpy()}

        return Workload(write, write, units=NEW)
    layers, heads = model.model.layers, model.config.num_attention_heads
    gates = [torch.ones(heads, 1, requires_grad=True) for _ in layers]

    def gated(gate: torch.Tensor, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        return (inputs[0].unflatten(-1, (heads, -1)) * gate).flatten(-2)

    def gate_step() -> dict[str, NDArray]:
        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, gate=gate: (gated(gate, inputs),))
            for layer, gate in zip(layers, gates, strict=True)
        ]
        for gate in gates:
            gate.grad = None
        loss().backward()
        for hook in hooks:
            hook.remove()
        return {"dgates": np.array([gate.grad.numpy()[:, 0] for gate in gates])}

    return Workload(gate_step, gate_step)
