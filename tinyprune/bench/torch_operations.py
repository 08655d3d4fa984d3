"""PyTorch's attention: plain, and with the fused SDPA; and where PyTorch computes.

The formulas of attention are those of `tinyprune.ops.attention`. Both ways take (B, T, H, Dh) as the projections
return it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinyprune.bench import Workload
from tinyprune.bench.shapes import attention_arguments, model_shape
from tinyprune.errors import UsageError


def torch_device(device: str) -> torch.device:
    """Choose "cpu", "cuda" with products in float32, or "cuda-tf32", which keeps 10 of float32's 23 bits in products.

    Raises UsageError if this PyTorch cannot compute on a GPU.
    """
    kind, _, tf32 = device.partition("-")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--peers torch: PyTorch {torch.__version__} finds no GPU: install one that is built for CUDA")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return torch.device(kind)


def visible_keys(T: int, S: int, span: int | None) -> Tensor:
    """Which context key each query sees, (T, S) bool."""
    distance = torch.arange(T)[:, None] + (S - T) - torch.arange(S)
    visible = distance >= 0
    return visible if span is None else visible & (distance <= span)


def by_key(scores: Tensor) -> Tensor:
    """Scores (B, H, T, S) sorted by falling distance, sorted by key: the "relative shift" of Transformer-XL."""
    B, H, T, S = scores.shape
    return F.pad(scores, (1, 0)).view(B, H, S + 1, T)[:, :, 1:].reshape(B, H, T, S)


def position_scores(q: Tensor, r: Tensor, w: Tensor) -> Tensor:
    """(q + w)·r / √Dh by key, (B, H, T, S), from q (B, H, T, Dh) and r (S, H, Dh) with row = distance."""
    r = r.flip(0).permute(1, 2, 0)  # (H, Dh, S)
    return by_key((q + w[:, None]) / math.sqrt(q.shape[-1]) @ r)


def plain_attention(q, k, v, r, u, w, pk, pv, visible: Tensor, dropout: float = 0.0) -> Tensor:
    """Scores, softmax, values, each written out. Returns (B, T, H, Dh)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, ·, Dh)
    content = (q if u is None else q + u[:, None]) / math.sqrt(q.shape[-1])
    scores = content @ k.transpose(-1, -2)
    if r is not None:
        scores = scores + position_scores(q, r, w)
    scores = scores.masked_fill(~visible, -math.inf)
    if pk is not None:
        scores = torch.cat([scores, q @ pk.transpose(-1, -2)], -1)
        v = torch.cat([v, (math.sqrt(pv.shape[1]) * pv).expand(len(v), -1, -1, -1)], 2)
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ v).transpose(1, 2)


def sdpa_attention(q, k, v, r, u, w, pk, pv, visible: Tensor, dropout: float = 0.0) -> Tensor:
    """`scaled_dot_product_attention` with the position scores as its additive mask. Returns (B, T, H, Dh)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, ·, Dh)
    B, H, T, Dh = q.shape
    mask = visible if r is None else position_scores(q, r, w).masked_fill(~visible, -math.inf)
    if pk is not None:
        N = pk.shape[1]
        k = torch.cat([k, (math.sqrt(Dh) * pk).expand(B, -1, -1, -1)], 2)
        v = torch.cat([v, (math.sqrt(N) * pv).expand(B, -1, -1, -1)], 2)
        if r is None:
            mask = F.pad(visible, (0, N), value=True)
        else:
            # SDPA uses one query for all keys, but u belongs to the context alone: subtract its persistent part.
            surplus = (u[:, None] * pk).sum(-1)  # (H, N)
            mask = torch.cat([mask, (-surplus)[:, None].expand(B, H, T, N)], -1)
    query = q if u is None else q + u[:, None]
    return F.scaled_dot_product_attention(query, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


MODES = {"plain": plain_attention, "sdpa": sdpa_attention}


def attention(mode: str, device: str = "cpu", **shape: Any) -> Workload:
    """Forward + backward to all inputs; see `shapes.model_shape` for `shape`."""
    measured, where = model_shape(**shape), torch_device(device)
    config = measured.config
    arrays, dout = attention_arguments(measured)
    given = {name: torch.from_numpy(x).to(where).requires_grad_() for name, x in arrays.items()}
    arguments = [given.get(name) for name in ("q", "k", "v", "r", "u", "w", "pk", "pv")]
    dout = torch.from_numpy(dout).to(where)
    visible = visible_keys(config.T, config.M + config.T, config.span).to(where)

    def run(dropout: float = config.dropout_attention):
        out = MODES[mode](*arguments, visible, dropout)
        grads = torch.autograd.grad(out, list(given.values()), dout)
        if where.type == "cuda":
            torch.cuda.synchronize()  # a GPU computes after the calls have returned
        return out, grads

    def results():
        out, grads = run(dropout=0.0)
        named = {f"d{name}": grad for name, grad in zip(given, grads, strict=True)}
        return {name: x.detach().cpu().numpy() for name, x in ({"out": out} | named).items()}

    return Workload(run, results)
