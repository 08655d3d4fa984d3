"""Attention over context and persistent vectors, with gated heads, on a GPU. See `tinyprune.ops.attention`.

Forward is one pass through the keys (`attend.forward`). Backward is four launches, which recompute the weights from the
saved log-sum-exp: `attend.queries` (dq), `attend.keys` for keys of the context (dk, dv, du) and again for persistent
ones (dpk, dpv), `attend.distances` (dr, dw). None stores a T × S matrix, and no block adds to what another has written:
every sum has one order, which depends on the shapes alone. `attend.tiles` explains how a block works.

The price is that each of the four recomputes scores and do·v: 14 products of vectors for a query and a key of the
context and 7 for a persistent key, where 8 and 5 would do if blocks added to each other's results in any order.

There are kernels for Dh up to 16, 32 and 64. Where Dh is no multiple of 4, arrays are copied, with rows of W numbers.
"""

import math
from typing import NamedTuple

import numpy as np

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.attend.distances import DISTANCES_BACKWARD
from tinyprune.kernels.cuda.attend.forward import FORWARD
from tinyprune.kernels.cuda.attend.inputs import Inputs, KeyGradients, KeyRows, Saved, Scales, Sizes
from tinyprune.kernels.cuda.attend.keys import KEYS_BACKWARD
from tinyprune.kernels.cuda.attend.queries import QUERIES_BACKWARD
from tinyprune.kernels.cuda.device.array import DeviceArray, copied, empty, to_device
from tinyprune.kernels.cuda.device.jit import Kernel, blocks
from tinyprune.kernels.cuda.sums import row_dots, row_sums, sum_all
from tinyprune.kernels.formulas import Dropout, draw_mask
from tinyprune.ops.attention import check_arguments

LOG2_E = math.log2(math.e)
BLOCKS = 1024  # about how many a launch has for gradients that are summed over the batch, in groups of its entries


class AttentionCache(NamedTuple):
    """This is what `attention_backward` needs."""

    inputs: Inputs
    u: DeviceArray | None  # (H, W)
    w: DeviceArray | None  # (H, W)
    sizes: Sizes
    scale: float
    scales: tuple[Scales, Scales]  # of keys of the context, and of persistent keys
    dropout: Dropout
    lse: DeviceArray  # base-2 logarithm of Σ 2^s, (H, B · T)
    o: DeviceArray  # head outputs before their gates, (B, T, H, Dh)


def padded(x: DeviceArray | None) -> DeviceArray | None:
    """Return `x`, contiguous, its rows padded with zeros to a multiple of 4 numbers, to be read 16 bytes at a time."""
    if x is None:
        return None
    W = -(-x.shape[-1] // 4) * 4
    return contiguous(x) if x.shape[-1] == W else copied(x, width=W)


def narrow(x: DeviceArray | None, D: int) -> DeviceArray | None:
    """Take the first D numbers of each row, contiguous; nothing is copied if that is all of them."""
    if x is None or x.shape[-1] == D:
        return x
    return copied(x, width=D)


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
    gate = None if gate is None else to_device(gate)  # gates are made in main memory
    optional = {"r": r, "u": u, "w": w, "pk": pk, "pv": pv, "gate": gate}
    check_floats(q=q, k=k, v=v, **{name: x for name, x in optional.items() if x is not None})
    B, T, H, Dh = q.shape
    S, N = k.shape[1], 0 if pk is None else pk.shape[1]
    attend = variant(FORWARD, Dh)
    q, k, v, r, u, w, pk, pv = map(padded, (q, k, v, r, u, w, pk, pv))
    biases = (None, None) if r is None else row_dots((k, u), (r, w))
    inputs = Inputs(q, k, v, r, pk, pv, *biases, None if gate is None else contiguous(gate))
    seen = S if span is None else min(span, S)
    sizes = Sizes(B, T, S, H, N, q.shape[-1], seen, relative=r is not None, gated=gate is not None)
    mask = draw_mask(dropout, rng)

    out, lse = empty(q.shape), empty((H, B * T))
    o = empty(q.shape) if sizes.gated or scale != 1 else out  # they are the same numbers
    attend((B, H, blocks(T, attend.tiles.queries)), inputs, out, o, lse, sizes, *scales_of(Dh, N, 1.0), scale, mask)
    o = narrow(o, Dh)
    scales = scales_of(Dh, N, float(scale) * mask.factor)
    return narrow(out, Dh), AttentionCache(inputs, u, w, sizes, float(scale), scales, mask, lse, o)


def attention_backward(dout: DeviceArray, cache: AttentionCache) -> tuple[DeviceArray | None, ...]:
    """Gradients of `attention_forward` in argument order, as `ops.attention_backward`; None for what was None."""
    c, given = cache, cache.inputs
    B, T, H, Dh = c.o.shape
    check_gradient(dout, c.o.shape)
    saved = Saved(padded(dout), padded(c.o), c.lse, empty(c.lse.shape))
    kernel, dq = variant(QUERIES_BACKWARD, Dh), empty(given.q.shape)
    grid = B, H, blocks(T, kernel.tiles.queries)
    kernel(grid, given, saved, dq, c.sizes, *c.scales, c.scale, c.dropout)  # and delta
    dk, dv, du = key_gradients(saved, c)
    dr, dw = distance_gradients(saved, c) if c.sizes.relative else (None, None)
    dpk, dpv = (None, None) if given.pk is None else persistent_gradients(saved, c)
    summed = slot_sums((dr, given.r), (du, c.u), (dw, c.w), (dpk, given.pk), (dpv, given.pv))
    dgate = row_sums(saved.delta) if c.sizes.gated else None
    return *(narrow(x, Dh) for x in (dq, dk, dv, *summed)), dgate


def key_gradients(saved: Saved, c: AttentionCache) -> tuple[DeviceArray, DeviceArray, DeviceArray | None]:
    """Compute dk, dv and slots of du."""
    B, S, H, W = c.inputs.k.shape
    kernel = variant(KEYS_BACKWARD, c.o.shape[-1])
    tiles = blocks(S, kernel.tiles.keys)
    du = empty((B * tiles, H * W)) if c.sizes.relative else None
    out = KeyGradients(c.u, empty(c.inputs.k.shape), empty(c.inputs.k.shape), du)
    keys = KeyRows(count=S, group=1, slot_stride=S * H * W, head_stride=W, key_stride=H * W)
    kernel((B, H, tiles), c.inputs, saved, out, c.sizes, keys, c.scales[0], True, c.dropout)
    return out.dk, out.dv, du


def persistent_gradients(saved: Saved, c: AttentionCache) -> tuple[DeviceArray, DeviceArray]:
    """Compute slots of dpk and dpv, for `slot_sums`."""
    (H, N, W), B = c.inputs.pk.shape, len(c.o)
    kernel = variant(KEYS_BACKWARD, c.o.shape[-1])
    tiles = blocks(N, kernel.tiles.keys)
    group, slots = groups(B, H * tiles)
    out = KeyGradients(None, empty((slots, H, N, W)), empty((slots, H, N, W)), None)
    inputs, sizes = c.inputs._replace(k=c.inputs.pk, v=c.inputs.pv), c.sizes._replace(relative=False)
    keys = KeyRows(count=N, group=group, slot_stride=H * N * W, head_stride=N * W, key_stride=W)
    kernel((slots, H, tiles), inputs, saved, out, sizes, keys, c.scales[1], False, c.dropout)
    return out.dk, out.dv


def distance_gradients(saved: Saved, c: AttentionCache) -> tuple[DeviceArray, DeviceArray]:
    """Compute slots of dr and dw."""
    (S, H, W), B = c.inputs.r.shape, len(c.o)
    kernel = variant(DISTANCES_BACKWARD, c.o.shape[-1])
    tiles = blocks(S, kernel.tiles.keys)
    group, slots = groups(B, H * tiles)
    dr, dw = empty((slots, S, H, W)), empty((slots * tiles, H * W))
    kernel((slots, H, tiles), c.inputs, saved, c.w, dr, dw, c.sizes, group, c.scales[0], c.dropout)
    return dr, dw


def scales_of(Dh: int, N: int, weight: float) -> tuple[Scales, Scales]:
    """Return the factors of keys of the context, and of persistent keys; `weight`: as in `Scales`."""
    root = math.sqrt(Dh)
    return Scales(LOG2_E / root, weight, 1 / root), Scales(LOG2_E, weight * math.sqrt(N), 1.0)


def variant(kernels: dict[int, Kernel], Dh: int) -> Kernel:
    """Return the narrowest kernel that Dh fits into. Raises UsageError if there is none."""
    if Dh > max(kernels):
        raise UsageError(
            f"heads have at most {max(kernels)} numbers (Dh = D / H) on a GPU, got {Dh}; make D smaller or H larger, "
            "or use --backend numba"
        )
    return kernels[min(width for width in kernels if width >= Dh)]


def groups(B: int, each: int) -> tuple[int, int]:
    """Cut the batch into groups of `each` blocks: return the batch entries of a group, and the number of groups."""
    group = max(blocks(B * each, BLOCKS), 1)
    return group, max(blocks(B, group), 1)


def slot_sums(*pairs: tuple[DeviceArray | None, DeviceArray | None]) -> list[DeviceArray | None]:
    """Sum slots, each of which has the entries of the array beside it, into its shape; None for None."""
    found, launched = [], []
    for slots, like in pairs:
        if slots is None:
            found.append(None)
        elif slots.size == like.size:
            found.append(slots.reshape(like.shape))
        else:
            found.append(empty(like.shape))
            launched.append((slots, slots.size // max(like.size, 1), found[-1]))
    sum_all(launched)
    return found
