"""Reading one token at a time in eager PyTorch, with keys and values in buffers that are allocated once.

A ring of C places holds the C latest keys and values, and the persistent ones follow it, so that one product reaches
all of them. (For a single query SDPA took 1.4 times as long as `baddbmm`, softmax and a product.) Token t goes to place
t mod C. Then the key at place s has distance (t − s) mod C: for every t that is a slice of the same periodic row of
position keys, which are computed once.
"""

from __future__ import annotations

import math

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tinyprune.bench import Workload
from tinyprune.bench.shapes import full_text, model_shape, reading
from tinyprune.bench.torch_model import LanguageModel, Layer
from tinyprune.errors import UsageError


class LayerDecoder:
    """Takes a token through one layer, with its prepared weights and its buffers."""

    def __init__(self, layer: Layer, R: Tensor, C: int) -> None:
        self.layer, self.C = layer, C
        H, Dh = layer.u.shape
        N = 0 if layer.pk is None else layer.pk.shape[1]
        projections = [layer.q, layer.kv] if layer.config.M else [layer.qkv]
        self.qkv = torch.cat([p.weight for p in projections])
        self.keys, self.values = torch.zeros(2, H, C + N, Dh)
        self.bias = torch.full((H, 1, C + N), -math.inf)  # added to the scores
        if N:
            self.keys[:, C:] = math.sqrt(Dh) * layer.pk
            self.values[:, C:] = math.sqrt(N) * layer.pv
            # One query is used for all keys, but u belongs to the context alone: subtract its persistent part.
            self.bias[:, 0, C:] = -(layer.u[:, None] * layer.pk).sum(-1)
        self.root = 1 / math.sqrt(Dh)
        r = layer.r(R[:C]).view(C, H, Dh) * self.root
        # column x: distance −x mod C, (H, Dh, 2C)
        self.r = r[-torch.arange(2 * C) % C].permute(1, 2, 0).contiguous()

    def clear(self) -> None:
        """Forget everything read."""
        self.bias[..., : self.C] = -math.inf

    def step(self, x: Tensor, t: int) -> Tensor:
        """Pass token number t, x (1, D), through the layer."""
        layer, C = self.layer, self.C
        place, filled = t % C, min(t + 1, C)
        q, k, v = F.linear(layer.norm(x), self.qkv).view(3, len(layer.u), 1, -1)
        self.keys[:, place] = k[:, 0]
        self.values[:, place] = v[:, 0]
        self.bias[..., :filled] = (q + layer.w[:, None]) @ self.r[:, :, C - place : C - place + filled]
        scores = torch.baddbmm(self.bias, q + layer.u[:, None], self.keys.transpose(1, 2), alpha=self.root)
        o = scores.softmax(-1) @ self.values  # (H, 1, Dh)
        x = x + layer.out(o.reshape(1, -1))
        return x if layer.feedforward is None else x + layer.feedforward(x)


class Decoder:
    """Reads tokens one by one with a language model that has relative positions."""

    @torch.inference_mode()
    def __init__(self, model: LanguageModel) -> None:
        config = model.config
        if not config.relative:
            raise UsageError(f"PyTorch's decoder is for models with relative positions, got {config.positions} ones")
        self.model = model.eval()
        places = config.M + 1 if config.mask == "same-length" else config.M + config.T
        self.layers = [LayerDecoder(layer, model.positions, places) for layer in model.layers]
        self.clear()

    @torch.inference_mode()
    def clear(self) -> None:
        """Forget everything read."""
        self.read = 0
        for layer in self.layers:
            layer.clear()

    @torch.inference_mode()
    def step(self, token: int) -> NDArray:
        """Read one token; return log p of every next one, (V,)."""
        model = self.model
        x = model.embedding[token : token + 1] * math.sqrt(model.config.D)
        for layer in self.layers:
            x = layer.step(x, self.read)
        self.read += 1
        return F.linear(model.norm(x), model.embedding, model.out_bias)[0].log_softmax(-1).numpy()


def decoder(name: str, threads: int) -> Workload:
    """Read tokens one by one with so many threads; see `shapes.reading`."""
    shape = model_shape(name)
    work = Decoder(LanguageModel(shape, "sdpa"))

    def step(token: int) -> NDArray:
        # another workload of this process may have set another number
        torch.set_num_threads(threads)
        return work.step(token)

    return reading(work.clear, step, full_text(shape.config))
