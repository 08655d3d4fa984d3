"""The same language model as a PyTorch user would write it, and its training step.

`mode` is "plain" or "sdpa", the way attention is written; `torch.compile` may compile the whole model with either,
and both may run under bf16 autocast.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tinyprune.bench import Workload
from tinyprune.bench.shapes import TRAIN, ModelShape, batch, model_shape, parameters
from tinyprune.bench.torch_operations import MODES, torch_device, visible_keys
from tinyprune.config import ModelConfig
from tinyprune.model.parameters import layer_parameters


def parameter(x: NDArray) -> nn.Parameter:
    """Return a copy of an array as a parameter, in memory that PyTorch has aligned."""
    return nn.Parameter(torch.from_numpy(x).clone(memory_format=torch.contiguous_format))


def linear(W: NDArray, bias: NDArray | None = None) -> nn.Linear:
    """Return the layer that multiplies by our W (n, m) from the right; a Linear's weight is the transpose."""
    layer = nn.Linear(*W.shape, bias=False)
    layer.weight = parameter(W.T)
    if bias is not None:
        layer.bias = parameter(bias)
    return layer


def norm(scale: NDArray, bias: NDArray) -> nn.LayerNorm:
    """Return the LayerNorm with this scale and bias."""
    layer = nn.LayerNorm(len(scale))
    layer.weight, layer.bias = parameter(scale), parameter(bias)
    return layer


class Layer(nn.Module):
    """Attention over memory, segment and persistent vectors, then a feed-forward block or the heads' nets. Pre-norm."""

    def __init__(self, config: ModelConfig, mode: str, p: dict[str, NDArray]) -> None:
        """Take our parameters of a layer, `p`."""
        super().__init__()
        self.config, self.attend = config, MODES[mode]
        self.norm = norm(p["ln.scale"], p["ln.bias"])
        if config.M:
            self.q, self.kv = linear(p["Wq"]), linear(np.hstack([p["Wk"], p["Wv"]]))
        else:  # q, k and v have the same positions: one product
            self.qkv = linear(np.hstack([p["Wq"], p["Wk"], p["Wv"]]))
        self.out = linear(p["Wo"], p["bo"])
        self.r = linear(p["Wr"]) if config.relative else None
        for name in ("u", "w", "pk", "pv"):
            self.register_parameter(name, parameter(p[name]) if name in p else None)
        self.feedforward = None
        if config.networks:  # all heads' nets side by side
            self.feedforward = nn.Sequential(
                norm(p["net.ln.scale"], p["net.ln.bias"]),
                linear(np.concatenate(p["net.pk"]).T, p["net.pb"].ravel()),
                nn.ReLU(),
                linear(np.concatenate(p["net.pv"]), p["net.bo"]),
            )
        if config.F:
            self.feedforward = nn.Sequential(
                norm(p["ffn.ln.scale"], p["ffn.ln.bias"]),
                linear(p["ffn.W1"], p["ffn.b1"]),
                nn.ReLU(),
                linear(p["ffn.W2"], p["ffn.b2"]),
            )

    def forward(self, x: Tensor, memory: Tensor | None, R: Tensor | None, visible: Tensor) -> Tensor:
        """Map x (B, T, D), with memory (B, M, D), to (B, T, D)."""
        q, k, v = (y.unflatten(-1, (-1, self.config.Dh)) for y in self.queries_keys_values(x, memory))
        r = None if R is None else self.r(R).unflatten(-1, (-1, self.config.Dh))
        dropout = self.config.dropout_attention if self.training else 0.0
        o = self.attend(q, k, v, r, self.u, self.w, self.pk, self.pv, visible, dropout)
        x = x + F.dropout(self.out(o.flatten(2)), self.config.dropout, self.training)
        if self.feedforward is None:
            return x
        return x + F.dropout(self.feedforward(x), self.config.dropout, self.training)

    def queries_keys_values(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, ...]:
        """q of x; k and v of memory and x, (B, S, W)."""
        if memory is None:
            return self.qkv(self.norm(x)).chunk(3, -1)
        n = self.norm(torch.cat([memory, x], 1))
        return self.q(n[:, memory.shape[1] :]), *self.kv(n).chunk(2, -1)


class LanguageModel(nn.Module):
    """Embeddings tied to the output layer, layers, cross-entropy; with our parameters."""

    def __init__(self, shape: ModelShape, mode: str) -> None:
        super().__init__()
        self.config = config = shape.config
        params = parameters(shape)
        self.embedding = parameter(params["embedding"])
        self.out_bias = parameter(params["out_bias"])
        # relative: row = distance
        self.positions = parameter(params["R" if config.relative else "positions"])
        layers = [layer_parameters(params, i) for i in range(config.L)]
        self.layers = nn.ModuleList(Layer(config, mode, p) for p in layers)
        self.norm = norm(params["ln.scale"], params["ln.bias"])
        self.register_buffer("visible", visible_keys(config.T, config.M + config.T, config.span))

    def forward(self, ids: Tensor, targets: Tensor, memory: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Mean cross-entropy, and the next segment's memory. ids, targets (B, T); memory (B, M, D) per layer, or []."""
        config, new_memory = self.config, []
        table = self.embedding
        if self.training and config.dropout_embedding:
            table = table * F.dropout(table.new_ones(config.V, 1), config.dropout_embedding)  # whole words
        x = F.embedding(ids, table) * math.sqrt(config.D)
        R = self.positions
        if not config.relative:
            x, R = x + R, None
        for layer, m in zip(self.layers, memory or [None] * config.L, strict=True):
            if config.M:
                latest = x if x.shape[1] >= config.M else torch.cat([m, x], 1)
                new_memory.append(latest.detach()[:, -config.M :])
            x = layer(x, m, R, self.visible)
        logits = F.linear(self.norm(x), self.embedding, self.out_bias)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), new_memory


def make_optimizer(model: LanguageModel) -> torch.optim.AdamW:
    """Return AdamW, fused, with our decay of each parameter."""
    matrices, others = [], []
    for name, x in model.named_parameters():
        vectors_of_heads = name.endswith((".u", ".w"))
        group = matrices if x.ndim > 1 and not vectors_of_heads else others
        group.append(x)
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    options = {"lr": TRAIN.lr, "betas": (TRAIN.beta1, TRAIN.beta2), "eps": TRAIN.eps}
    return torch.optim.AdamW(groups, weight_decay=TRAIN.weight_decay, fused=True, **options)


def training_step(mode: str, compiled: bool = False, bf16: bool = False, device: str = "cpu", **shape: Any) -> Workload:
    """Forward, loss, backward, clipping, AdamW; memory is carried from step to step. `shape`: `shapes.model_shape`.

    With `bf16` forward runs under autocast, which lets products and attention compute with bfloat16 numbers.
    """
    measured, where = model_shape(**shape), torch_device(device)
    model = LanguageModel(measured, mode).to(where)
    update = make_optimizer(model)
    loss_of = torch.compile(model, disable=not compiled)
    ids, targets, memory = batch(measured)
    ids, targets = (torch.from_numpy(x).to(where) for x in (ids, targets))
    memory = [torch.from_numpy(m).to(where) for m in memory or ()]

    def step() -> float:
        nonlocal memory
        update.zero_grad()
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
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

    return Workload(step, losses)
