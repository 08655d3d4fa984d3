"""Attention over context and persistent vectors, with gated heads, on a GPU. See `tinyprune.ops.attention`.

Forward is one pass along the keys (`attention_outputs`), backward four launches, each of which makes the weights anew
from the saved log-sum-exp: `attention_queries` (dq), `attention_keys` for context keys (dk, dv, du) and again for
persistent ones (dpk, dpv), `attention_distances` (dr, dw). None has a matrix of T × S in memory, and none adds to what
another block has written: every sum has one order, which depends on the shapes alone. What they are made of is in
`attention_tiles`.

So scores and do·v are made again in each of the four. For a query and a key of the context these are 14 products of
vectors, for a persistent key 7, where 8 and 5 would do if blocks added to what others have written, in whatever order.

Dh is rounded up to the width of the next kernel, at most 64; arrays whose Dh is no multiple of 4 are copied first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.array import DeviceArray, empty
from tinyprune.kernels.cuda.attention_distances import DISTANCES_BACKWARD
from tinyprune.kernels.cuda.attention_keys import KEYS_BACKWARD
from tinyprune.kernels.cuda.attention_outputs import FORWARD
from tinyprune.kernels.cuda.attention_queries import QUERIES_BACKWARD
from tinyprune.kernels.cuda.column_sums import column_sums
from tinyprune.kernels.cuda.jit import Kernel, blocks
from tinyprune.kernels.cuda.row_dots import row_dots
from tinyprune.kernels.cuda.widths import narrow, wide
from tinyprune.kernels.formulas import threshold
from tinyprune.ops.attention import check_arguments
from tinyprune.ops.dropout import draw_keys

LOG2_E = math.log2(math.e)
BLOCKS = 1024  # gradients that are summed over the batch are summed in groups, so that there are about so many blocks


class AttentionCache(NamedTuple):
    """What `attention_backward` needs. W is Dh, rounded up to a multiple of 4 with zeros."""

    q: DeviceArray  # (B, T, H, W)
    k: DeviceArray  # (B, S, H, W), and so v
    v: DeviceArray
    r: DeviceArray | None  # (S, H, W), row = distance
    u: DeviceArray | None  # (H, W)
    w: DeviceArray | None
    pk: DeviceArray | None  # (H, N, W)
    pv: DeviceArray | None
    gate: DeviceArray | None
    key_bias: DeviceArray | None  # u·k, (B, S, H)
    distance_bias: DeviceArray | None  # w·r, (S, H)
    scale: float
    span: int
    raised: float  # 1 / (1 − dropout)
    mask: tuple[np.uint32, np.uint32, np.uint32]  # two keys and the threshold
    lse: DeviceArray  # base-2 logarithm of Σ 2^s, (B, T, H)
    o: DeviceArray  # head outputs before their gates, (B, T, H, Dh)


def attention_forward(
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    r: DeviceArray | None = None,
    u: DeviceArray | None = None,
    w: DeviceArray | None = None,
    pk: DeviceArray | None = None,
    pv: DeviceArray | None = None,
    gate: DeviceArray | None = None,
    *,
    span: int | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[DeviceArray, AttentionCache]:
    """`ops.attention_forward` for float32 and Dh ≤ 64. The cache has the head outputs `o`; weights are not kept."""
    check_arguments(q, k, v, r, u, w, pk, pv, gate, span, dropout)
    optional = {"r": r, "u": u, "w": w, "pk": pk, "pv": pv, "gate": gate}
    check_floats(q=q, k=k, v=v, **{name: x for name, x in optional.items() if x is not None})
    B, T, H, Dh = q.shape
    S, N = k.shape[1], 0 if pk is None else pk.shape[1]
    attend = variant(FORWARD, Dh)
    q, k, v, r, u, w, pk, pv = (x if x is None else wide(x) for x in (q, k, v, r, u, w, pk, pv))
    gate = gate if gate is None else contiguous(gate)
    W = q.shape[-1]
    span = S if span is None else min(span, S)
    raised, mask = 1.0, (0, 0, 0)
    if rng is not None and dropout > 0:
        raised, mask = 1 / (1 - dropout), (*draw_keys(rng), threshold(dropout))
    mask = tuple(map(np.uint32, mask))

    key_bias, distance_bias = (None, None) if r is None else (row_dots(k, u), row_dots(r, w))
    out, o, lse = empty(q.shape), empty(q.shape), empty((B, T, H))
    attend(
        (B, H, blocks(T, attend.tiles.queries)), q, k, v, r, pk, pv, key_bias, distance_bias, gate, out, o, lse,
        T, S, H, N, W, span, LOG2_E / math.sqrt(Dh), LOG2_E, math.sqrt(N), scale, raised, r is not None,
        gate is not None, *mask,
    )  # fmt: skip
    o = narrow(o, Dh)
    cache = AttentionCache(
        q, k, v, r, u, w, pk, pv, gate, key_bias, distance_bias, float(scale), span, raised, mask, lse, o
    )
    return narrow(out, Dh), cache


def attention_backward(dout: DeviceArray, cache: AttentionCache) -> tuple[DeviceArray | None, ...]:
    """Gradients of `attention_forward` in argument order, as `ops.attention_backward`; None for what was None."""
    c = cache
    check_gradient(dout, c.o.shape)
    dout = wide(dout)
    delta = row_dots(dout, wide(c.o), c.scale)  # Σ_d do · o, but for the gate
    dq = query_gradients(dout, delta, c)
    dk, dv, du = key_gradients(dout, delta, c)
    dr, dw = (None, None) if c.r is None else distance_gradients(dout, delta, c)
    dpk, dpv = (None, None) if c.pk is None else persistent_gradients(dout, delta, c)
    dgate = None if c.gate is None else column_sums(delta.reshape(-1, len(c.gate)))
    return dq, dk, dv, dr, du, dw, dpk, dpv, dgate


def query_gradients(dout: DeviceArray, delta: DeviceArray, c: AttentionCache) -> DeviceArray:
    """dq."""
    B, T, S, H, N, W, Dh = sizes(c)
    kernel = variant(QUERIES_BACKWARD, Dh)
    dq = empty(c.q.shape)
    kernel(
        (B, H, blocks(T, kernel.tiles.queries)), c.q, c.k, c.v, c.r, c.pk, c.pv, c.key_bias, c.distance_bias, c.gate,
        dout, c.lse, delta, dq, T, S, H, N, W, c.span, LOG2_E / math.sqrt(Dh), LOG2_E, 1 / math.sqrt(Dh),
        c.scale * c.raised, c.scale * c.raised * math.sqrt(N), c.r is not None, c.gate is not None, *c.mask,
    )  # fmt: skip
    return narrow(dq, Dh)


def key_gradients(
    dout: DeviceArray, delta: DeviceArray, c: AttentionCache
) -> tuple[DeviceArray, DeviceArray, DeviceArray | None]:
    """dk, dv and du."""
    B, T, S, H, N, W, Dh = sizes(c)
    kernel = variant(KEYS_BACKWARD, Dh)
    tiles = blocks(S, kernel.tiles.keys)
    dk, dv = empty(c.k.shape), empty(c.k.shape)
    du = None if c.r is None else empty((B * tiles, H * W))
    kernel(
        (B, H, tiles), c.q, c.k, c.v, c.r, c.u, c.key_bias, c.distance_bias, c.gate, dout, c.lse, delta, dk, dv, du,
        B, T, S, H, N, W, c.span, S, S * H * W, W, H * W, 1, LOG2_E / math.sqrt(Dh), 1 / math.sqrt(Dh),
        c.scale * c.raised, True, c.r is not None, c.gate is not None, *c.mask,
    )  # fmt: skip
    return narrow(dk, Dh), narrow(dv, Dh), None if c.r is None else slot_sum(du, c.u.shape, Dh)


def persistent_gradients(dout: DeviceArray, delta: DeviceArray, c: AttentionCache) -> tuple[DeviceArray, DeviceArray]:
    """dpk and dpv."""
    B, T, S, H, N, W, Dh = sizes(c)
    kernel = variant(KEYS_BACKWARD, Dh)
    tiles = blocks(N, kernel.tiles.keys)
    group, slots = groups(B, H * tiles)
    dpk, dpv = empty((slots, H, N, W)), empty((slots, H, N, W))
    kernel(
        (slots, H, tiles), c.q, c.pk, c.pv, None, None, None, None, c.gate, dout, c.lse, delta, dpk, dpv, None,
        B, T, S, H, N, W, c.span, N, H * N * W, N * W, W, group, LOG2_E, 1.0, c.scale * c.raised * math.sqrt(N),
        False, False, c.gate is not None, *c.mask,
    )  # fmt: skip
    return slot_sum(dpk, c.pk.shape, Dh), slot_sum(dpv, c.pk.shape, Dh)


def distance_gradients(dout: DeviceArray, delta: DeviceArray, c: AttentionCache) -> tuple[DeviceArray, DeviceArray]:
    """dr and dw."""
    B, T, S, H, N, W, Dh = sizes(c)
    kernel = variant(DISTANCES_BACKWARD, Dh)
    tiles = blocks(S, kernel.tiles.keys)
    group, slots = groups(B, H * tiles)
    dr, dw = empty((slots, S, H, W)), empty((slots * tiles, H * W))
    kernel(
        (slots, H, tiles), c.q, c.k, c.v, c.r, c.w, c.key_bias, c.distance_bias, c.gate, dout, c.lse, delta, dr, dw,
        B, T, S, H, N, W, c.span, group, LOG2_E / math.sqrt(Dh), 1 / math.sqrt(Dh), c.scale * c.raised,
        c.gate is not None, *c.mask,
    )  # fmt: skip
    return slot_sum(dr, c.r.shape, Dh), slot_sum(dw, c.w.shape, Dh)


def sizes(c: AttentionCache) -> tuple[int, int, int, int, int, int, int]:
    """B, T, S, H, N, W and Dh."""
    B, T, H, W = c.q.shape
    return B, T, c.k.shape[1], H, 0 if c.pk is None else c.pk.shape[1], W, c.o.shape[-1]


def variant(kernels: dict[int, Kernel], Dh: int) -> Kernel:
    """The narrowest of some kernels that Dh fits into. UsageError if there is none."""
    if Dh > max(kernels):
        raise UsageError(
            f"heads have at most {max(kernels)} numbers (Dh = D / H) on a GPU, got {Dh}; make D smaller or H larger, "
            "or use --backend numba"
        )
    return kernels[min(width for width in kernels if width >= Dh)]


def groups(B: int, each: int) -> tuple[int, int]:
    """How to cut the batch into groups that make so many blocks each: batch entries of a group, and groups."""
    group = max(blocks(B * each, BLOCKS), 1)
    return group, max(blocks(B, group), 1)


def slot_sum(slots: DeviceArray, shape: tuple[int, ...], Dh: int) -> DeviceArray:
    """The sum of slots that have the entries of `shape` (…, W) each, narrowed to (…, Dh)."""
    size = math.prod(shape)
    flat = slots.reshape(slots.size // size if size else 1, size)
    return narrow((flat if len(flat) == 1 else column_sums(flat)).reshape(shape), Dh)
