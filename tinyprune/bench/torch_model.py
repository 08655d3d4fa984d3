"""The same language model as a PyTorch user would write it, and its training step.

`mode` is "plain" or "sdpa", the way attention is written; `torch.compile` may compile the whole model with either,
and both may run under bf16 autocast.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tinyprune.bench import Workload
from tinyprune.bench.shapes import TRAIN, ModelShape, batch, model_shape, parameters
from tinyprune.bench.torch_operations import MODES, gauge, torch_device, visible_keys
from tinyprune.config import ModelConfig
from tinyprune.model.parameters import layer_parameters


class Layer(nn.Module):
    """Attention over memory, segment and persistent vectors, then a feed-forward block or the heads' nets. Pre-norm."""

    def __init__(self, config: ModelConfig, heads: int, mode: str) -> None:
        super().__init__()
        D, Dh, width = config.D, config.Dh, heads * config.Dh
        self.heads, self.dropout, self.dropout_attention = heads, config.dropout, config.dropout_attention
        self.attend = MODES[mode]
        self.norm = nn.LayerNorm(D)
        # One product for q, k and v if they have the same positions.
        projections = {"q": width, "kv": 2 * width} if config.M else {"qkv": 3 * width}
        self.project = nn.ModuleDict({name: nn.Linear(D, n, bias=False) for name, n in projections.items()})
        self.out = nn.Linear(width, D)
        self.r = nn.Linear(D, width, bias=False) if config.relative else None
        for name in ("u", "w"):
            self.register_parameter(name, nn.Parameter(torch.zeros(heads, Dh)) if config.relative else None)
        for name in ("pk", "pv"):
            self.register_parameter(name, nn.Parameter(torch.zeros(heads, config.N, Dh)) if config.attended else None)
        self.feedforward = None
        if config.second:
            units = heads * config.N if config.networks else config.F  # all heads' nets side by side
            self.feedforward = nn.Sequential(
                nn.LayerNorm(D), nn.Linear(D, units), nn.ReLU(), nn.Linear(units, D), nn.Dropout(config.dropout)
            )

    def forward(self, x: Tensor, memory: Tensor | None, R: Tensor | None, visible: Tensor) -> Tensor:
        """Map x (B, T, D), with memory (B, M, D), to (B, T, D)."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.queries_keys_values(x, memory))
        r = None if R is None else self.r(R).unflatten(-1, (self.heads, -1))
        dropout = self.dropout_attention if self.training else 0.0
        o = self.attend(q, k, v, r, self.u, self.w, self.pk, self.pv, visible, dropout)
        x = x + F.dropout(self.out(o.flatten(2)), self.dropout, self.training)
        return x if self.feedforward is None else x + self.feedforward(x)

    def queries_keys_values(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        """q of x; k and v of memory and x, (B, S, W)."""
        if memory is None:
            return self.project["qkv"](self.norm(x)).chunk(3, -1)
        n = self.norm(torch.cat([memory, x], 1))
        return self.project["q"](n[:, memory.shape[1] :]), *self.project["kv"](n).chunk(2, -1)


class LanguageModel(nn.Module):
    """Embeddings tied to the output layer, layers, cross-entropy."""

    def __init__(self, config: ModelConfig, mode: str) -> None:
        super().__init__()
        self.config = config
        D, T, S = config.D, config.T, config.M + config.T
        self.embedding = nn.Parameter(torch.zeros(config.V, D))
        self.positions = nn.Parameter(torch.zeros(S, D))  # relative: row = distance
        self.layers = nn.ModuleList(Layer(config, heads, mode) for heads in config.heads)
        self.norm = nn.LayerNorm(D)
        self.out_bias = nn.Parameter(torch.zeros(config.V))
        self.register_buffer("visible", visible_keys(T, S, config.span))

    def forward(self, ids: Tensor, targets: Tensor, memory: list[Tensor] | None) -> tuple[Tensor, list[Tensor] | None]:
        """Mean cross-entropy, and the next segment's memory. ids, targets (B, T); memory (B, M, D) per layer."""
        config, new_memory = self.config, []
        table = self.embedding
        if self.training and config.dropout_embedding:
            table = table * F.dropout(table.new_ones(config.V, 1), config.dropout_embedding)  # whole words
        x = F.embedding(ids, table) * math.sqrt(config.D)
        if not config.relative:
            x = x + self.positions
        for i, layer in enumerate(self.layers):
            m = memory[i] if memory else None
            if config.M:
                latest = x if x.shape[1] >= config.M else torch.cat([m, x], 1)
                new_memory.append(latest.detach()[:, -config.M :])
            x = layer(x, m, self.positions if config.relative else None, self.visible)
        logits = F.linear(self.norm(x), self.embedding, self.out_bias)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), new_memory or None


def loaded_model(shape: ModelShape, mode: str, device: torch.device) -> LanguageModel:
    """The model with our parameters. Our weights multiply from the right: a Linear's weight is the transpose."""
    model, params = LanguageModel(shape.config, mode), parameters(shape)
    state = {"embedding": params["embedding"], "out_bias": params["out_bias"]}
    state |= {"norm.weight": params["ln.scale"], "norm.bias": params["ln.bias"], "visible": model.visible.numpy()}
    state["positions"] = params["R" if model.config.relative else "positions"]
    for i in range(model.config.L):
        p = layer_parameters(params, i)
        layer = {"norm.weight": p["ln.scale"], "norm.bias": p["ln.bias"], "out.weight": p["Wo"].T, "out.bias": p["bo"]}
        if model.config.M:
            layer |= {"project.q.weight": p["Wq"].T, "project.kv.weight": np.hstack([p["Wk"], p["Wv"]]).T}
        else:
            layer["project.qkv.weight"] = np.hstack([p["Wq"], p["Wk"], p["Wv"]]).T
        if model.config.relative:
            layer["r.weight"] = p["Wr"].T
        if model.config.networks:
            layer |= {"feedforward.0.weight": p["net.ln.scale"], "feedforward.0.bias": p["net.ln.bias"]}
            layer |= {"feedforward.1.weight": np.concatenate(p["net.pk"]), "feedforward.1.bias": p["net.pb"].ravel()}
            layer |= {"feedforward.3.weight": np.concatenate(p["net.pv"]).T, "feedforward.3.bias": p["net.bo"]}
        if model.config.F:
            layer |= {"feedforward.0.weight": p["ffn.ln.scale"], "feedforward.0.bias": p["ffn.ln.bias"]}
            layer |= {"feedforward.1.weight": p["ffn.W1"].T, "feedforward.1.bias": p["ffn.b1"]}
            layer |= {"feedforward.3.weight": p["ffn.W2"].T, "feedforward.3.bias": p["ffn.b2"]}
        layer |= {name: p[name] for name in ("u", "w", "pk", "pv") if name in p}
        state |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state.items()})
    return model.to(device)


def make_optimizer(model: LanguageModel) -> torch.optim.AdamW:
    """Return AdamW, fused, with our decay of each parameter."""
    # Matrices decay; LayerNorms, biases and vectors per head do not.
    decays = {True: [], False: []}
    for name, parameter in model.named_parameters():
        last = name.split(".")[-1]
        decays[parameter.ndim > 1 and last not in ("u", "w")].append(parameter)
    groups = [{"params": p, "weight_decay": TRAIN.weight_decay if decay else 0.0} for decay, p in decays.items()]
    betas = (TRAIN.beta1, TRAIN.beta2)
    return torch.optim.AdamW(groups, lr=TRAIN.lr, betas=betas, eps=TRAIN.eps, fused=True)


def training_step(mode: str, compiled: bool = False, bf16: bool = False, device: str = "cpu", **shape: Any) -> Workload:
    """Forward, loss, backward, clipping, AdamW; memory is carried from step to step. `shape`: `shapes.model_shape`.

    With `bf16` forward runs under autocast, which lets products and attention compute with bfloat16 numbers.
    """
    measured, where = model_shape(**shape), torch_device(device)
    model = loaded_model(measured, mode, where)
    update = make_optimizer(model)
    loss_of = torch.compile(model) if compiled else model
    ids, targets, memory = batch(measured)
    ids, targets = (torch.from_numpy(x).to(where) for x in (ids, targets))
    memory = None if memory is None else [torch.from_numpy(m).to(where) for m in memory]

    def step() -> float:
        nonlocal memory
        update.zero_grad()
        with torch.autocast(where.type, torch.bfloat16) if bf16 else nullcontext():
            loss, memory = loss_of(ids, targets, memory)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), TRAIN.clip)
        update.step()
        return loss.item()  # waits for a GPU

    def losses() -> dict[str, NDArray]:
        model.eval()
        found = np.array([step() for _ in range(3)])
        model.train()
        return {"losses": found}

    return Workload(step, losses, gauge=gauge(where))
