"""The same language model as a PyTorch user would write it, and its training step.

`mode` is "plain" or "sdpa", the way attention is written; `torch.compile` may compile the whole model with either.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyprune.bench.shapes import TRAIN, ModelShape, batch, model_shape, parameters
from tinyprune.bench.torch_operations import MODES, gauge, torch_device, visible_keys
from tinyprune.bench.workload import Workload
from tinyprune.config import ModelConfig
from tinyprune.model.parameters import Parameters, layer_parameters


class Layer(nn.Module):
    """Attention over memory, segment and persistent vectors, then a feed-forward block if F > 0. Pre-norm."""

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
            self.register_parameter(name, nn.Parameter(torch.zeros(heads, config.N, Dh)) if config.N else None)
        self.feedforward = None
        if config.F:
            self.feedforward = nn.Sequential(
                nn.LayerNorm(D), nn.Linear(D, config.F), nn.ReLU(), nn.Linear(config.F, D), nn.Dropout(config.dropout)
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
                new_memory.append(remember(m, x, config.M))
            x = layer(x, m, self.positions if config.relative else None, self.visible)
        logits = F.linear(self.norm(x), self.embedding, self.out_bias)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), new_memory or None


def remember(memory: Tensor, x: Tensor, M: int) -> Tensor:
    """The latest M inputs of a layer, detached."""
    x = x.detach()
    return (x if x.shape[1] >= M else torch.cat([memory, x], 1))[:, -M:]


def load_parameters(model: LanguageModel, params: Parameters) -> None:
    """Load our parameters. Our weights multiply from the right: a Linear's weight is the transpose."""
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
        if model.config.F:
            layer |= {"feedforward.0.weight": p["ffn.ln.scale"], "feedforward.0.bias": p["ffn.ln.bias"]}
            layer |= {"feedforward.1.weight": p["ffn.W1"].T, "feedforward.1.bias": p["ffn.b1"]}
            layer |= {"feedforward.3.weight": p["ffn.W2"].T, "feedforward.3.bias": p["ffn.b2"]}
        layer |= {name: p[name] for name in ("u", "w", "pk", "pv") if name in p}
        state |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state.items()})


def make_optimizer(model: LanguageModel, way: str) -> torch.optim.AdamW:
    """AdamW with our decay of each parameter; `way` is "fused" or "foreach"."""
    # Matrices decay; LayerNorms, biases and vectors per head do not.
    decays = {True: [], False: []}
    for name, parameter in model.named_parameters():
        last = name.split(".")[-1]
        decays[parameter.ndim > 1 and last not in ("u", "w")].append(parameter)
    groups = [{"params": p, "weight_decay": TRAIN.weight_decay if decay else 0.0} for decay, p in decays.items()]
    betas = (TRAIN.beta1, TRAIN.beta2)
    return torch.optim.AdamW(groups, lr=TRAIN.lr, betas=betas, eps=TRAIN.eps, **{way: True})


class TrainingStep:
    """Forward, loss, backward, clipping, AdamW; memory is carried from step to step."""

    def __init__(self, shape: ModelShape, mode: str, optimizer: str, compiled: bool, device: torch.device) -> None:
        self.model = LanguageModel(shape.config, mode)
        load_parameters(self.model, parameters(shape))
        self.model.to(device)
        self.optimizer = make_optimizer(self.model, optimizer)
        self.loss = torch.compile(self.model) if compiled else self.model
        ids, targets, memory = batch(shape)
        self.ids, self.targets = (torch.from_numpy(x).to(device) for x in (ids, targets))
        self.memory = None if memory is None else [torch.from_numpy(m).to(device) for m in memory]

    def __call__(self) -> float:
        """Take one step; return the loss."""
        self.optimizer.zero_grad()
        loss, self.memory = self.loss(self.ids, self.targets, self.memory)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), TRAIN.clip)
        self.optimizer.step()
        return loss.item()  # waits for a GPU


def training_step(
    mode: str, optimizer: str = "fused", compiled: bool = False, device: str = "cpu", **shape: Any
) -> Workload:
    """One training step; see `shapes.model_shape` for `shape`."""
    measured, where = model_shape(**shape), torch_device(device)
    step = TrainingStep(measured, mode, optimizer, compiled, where)
    c = measured.config

    def losses():
        if c.dropout or c.dropout_attention or c.dropout_embedding:
            step.model.eval()
        losses = np.array([step() for _ in range(3)])
        step.model.train()
        return {"losses": losses}

    return Workload(step, losses, gauge=gauge(where))
