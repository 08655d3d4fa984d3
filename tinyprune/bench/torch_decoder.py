"""Reading one token at a time in PyTorch eager, with keys and values in buffers that are allocated once.

A ring of C places holds the C latest keys and values, and the persistent ones follow it, so that one product reaches
all of them. (For a single query SDPA took 1.4 times as long as `baddbmm`, softmax and a product.) Token t goes to place
t mod C. Then the key at place s has distance (t − s) mod C: for every t that is a slice of the same periodic row of
position keys, which are computed once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinyprune.bench.shapes import model_shape, parameters, tokens
from tinyprune.bench.torch_model import LanguageModel, Layer, load_parameters
from tinyprune.bench.torch_operations import torch_device
from tinyprune.bench.workload import Workload
from tinyprune.errors import UsageError


class LayerDecoder:
    """One layer's prepared weights and its buffers."""

    def __init__(self, layer: Layer, R: Tensor, C: int) -> None:
        self.layer, self.C = layer, C
        H, Dh, N = layer.heads, layer.u.shape[1], 0 if layer.pk is None else layer.pk.shape[1]
        device = layer.u.device
        self.qkv = torch.cat([p.weight for p in layer.project.values()])
        self.keys, self.values = torch.zeros(2, H, C + N, Dh, device=device)
        self.bias = torch.full((H, 1, C + N), -math.inf, device=device)  # added to the scores
        if N:
            self.keys[:, C:] = math.sqrt(Dh) * layer.pk
            self.values[:, C:] = math.sqrt(N) * layer.pv
            # One query is used for all keys, but u belongs to the context alone: subtract its persistent part.
            self.bias[:, 0, C:] = -(layer.u[:, None] * layer.pk).sum(-1)
        self.root = 1 / math.sqrt(Dh)
        r = layer.r(R[:C]).view(C, H, Dh) * self.root
        # column x: distance −x mod C, (H, Dh, 2C)
        self.r = r[-torch.arange(2 * C, device=device) % C].permute(1, 2, 0).contiguous()

    def clear(self) -> None:
        """Forget everything read."""
        self.bias[..., : self.C] = -math.inf

    def step(self, x: Tensor, t: int) -> Tensor:
        """Pass token number t, x (1, D), through the layer."""
        layer, C = self.layer, self.C
        place, filled = t % C, min(t + 1, C)
        q, k, v = F.linear(layer.norm(x), self.qkv).view(3, layer.heads, 1, -1)
        self.keys[:, place] = k[:, 0]
        self.values[:, place] = v[:, 0]
        self.bias[..., :filled] = (q + layer.w[:, None]) @ self.r[:, :, C - place : C - place + filled]
        scores = torch.baddbmm(self.bias, q + layer.u[:, None], self.keys.transpose(1, 2), alpha=self.root)
        x = x + layer.out((scores.softmax(-1) @ self.values).view(1, -1))
        return x if layer.feedforward is None else x + layer.feedforward(x)


class Decoder:
    """Reads tokens one by one with a language model that has relative positions."""

    def __init__(self, model: LanguageModel) -> None:
        config = model.config
        if not config.relative:
            raise UsageError(
                f"the decoder in PyTorch is for models with relative positions, got {config.positions} ones"
            )
        self.model = model.eval()
        places = config.M + 1 if config.mask == "same-length" else config.M + config.T
        self.layers = [LayerDecoder(layer, model.positions, places) for layer in model.layers]
        self.clear()

    def clear(self) -> None:
        """Forget everything read."""
        self.read = 0
        for layer in self.layers:
            layer.clear()

    def step(self, token: int) -> Tensor:
        """Read one token; return log p of every next one, (V,)."""
        model = self.model
        x = model.embedding[token : token + 1] * math.sqrt(model.config.D)
        for layer in self.layers:
            x = layer.step(x, self.read)
        self.read += 1
        return F.linear(model.norm(x), model.embedding, model.out_bias)[0].log_softmax(-1)


def decoder(n: int, threads: int, device: str = "cpu", **shape: Any) -> Workload:
    """Read `n` tokens one by one, each with log p of what comes next, once the context is full."""
    measured, where = model_shape(**shape), torch_device(device)
    c = measured.config
    model = LanguageModel(c, "sdpa")
    load_parameters(model, parameters(measured))
    model.to(where)
    with torch.inference_mode():
        cached = Decoder(model)
    beginning, text = (part.tolist() for part in np.split(tokens(measured, c.M + c.T + n), [-n]))

    @torch.inference_mode()
    def log_probabilities():
        """From the first token on, with an empty context."""
        cached.clear()
        return {"log_p": np.array([cached.step(token).cpu().numpy() for token in (*beginning, *text)])}

    @torch.inference_mode()
    def run(tokens: list[int] = text) -> None:
        torch.set_num_threads(threads)
        for token in tokens:
            cached.step(token).cpu()  # where the next token would be drawn

    run(beginning)
    return Workload(run, log_probabilities, units=n)
