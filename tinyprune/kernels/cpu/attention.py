"""All-attention in one pass over the keys, forward and backward: no T × S matrix is ever in memory.

Replaces, for every head of every batch entry, the textbook's

    for i in range(T):                                     # queries
        for j in range(S):                                 # context keys; persistent ones have s = q[i] @ pk
            s[i, j] = ((q[i] + u) @ k[j] + (q[i] + w) @ r[i + S - T - j]) / √Dh
        a[i] = softmax(s[i]);  o[i] = a[i] @ v

by tiles of 32 queries that run along the keys, keeping each query's running maximum, sum and output (online softmax,
Milakov & Gimelshein 2018; tiling as in FlashAttention, Dao et al. 2022). Backward recomputes the weights from the saved
log-sum-exp `lse`. The tricks, and in data/results/speed/kernels.md what each buys:

- Keys lie in the lanes of the vectors, packed once a head into panels, so that scores, weighted sums and all gradients
  are one register-tiled product with different strides (`attention_tiles`).
- The relative shift is free. Position scores (q_t + w)·r are a product with a row for each query t of the tile and a
  column c for each distance, falling; query t needs column c = j + 31 − t for key j. They are written first, to the
  memory of s, as if its rows were one number longer. So each row begins one place further right than the row above it,
  and every position score lies where the score of its key belongs; q·k is added to it. With tiles of 4, a bar before
  key 0, and columns c as numbers:

      row t = 0 of s    · 0 1 2 | 3 4 5 6 …
              1         · · 0 1 | 2 3 4 5 …
              2         · · · 0 | 1 2 3 4 …
              3         · · · · | 0 1 2 3 …

  Backward has ds where s was, a row for each query, and reads it through the same longer rows for dr and the positions'
  part of dq. Then column c holds ds of all pairs at one distance, of query t with key j = c + t − 31; with keys as
  numbers, and dots for the zeros that are written before key 0:

      column c          0 1 2 3 4 5 6 …
      row t = 0 of ds   · · · 0 1 2 3 …
              1         · · 0 1 2 3 4 …           dr of column c += Σ_t ds[t, c] · (q_t + w)
              2         · 0 1 2 3 4 5 …           dq_t += Σ_c ds[t, c] · (r of column c)
              3         0 1 2 3 4 5 6 …
- 2^x replaces e^x; log2 e is folded into the queries.
- Keys that no query of the tile sees are skipped, and so is the backward of heads whose gate is 0.
- Dropped weights are recomputed from their hash, not stored.
- The batch shares r, u, w, pk and pv. Their gradients are summed in slots, one for each head and group of the batch,
  and then over the slots in order. The number of groups depends on B and H alone, not on the number of threads, and
  with it the order in which numbers are summed.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, int64, prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cpu.attention_tiles import (
    LOWEST,
    ROWS,
    TILE,
    Mask,
    Running,
    Sizes,
    fill_zero,
    mix,
    outer,
    round_up,
    scores,
    softmax_rows,
    softmax_rows_backward,
)
from tinyprune.kernels.cpu.jit import inner, kernel, parallel_kernel
from tinyprune.kernels.cpu.panels import pack_rows, unpack_rows
from tinyprune.kernels.cpu.product import PARTS
from tinyprune.kernels.cpu.simd import (
    LOG2_E,
    VECTOR_BYTES,
    add,
    broadcast,
    fetch_add,
    lanes,
    load,
    muladd,
    multiply,
    never_inline,
    store,
    total,
)
from tinyprune.kernels.cpu.workspace import empty
from tinyprune.kernels.formulas import Dropout, draw_mask
from tinyprune.ops.attention import check_arguments

LN_2 = math.log(2)
CHUNK = 256  # keys at once, so that a tile's scores stay in the first caches
EVERY_KEY = Mask(0, 1 << 62, 0)  # masks nothing
UNITS = 16  # backward is split into at least so many (head, batch group) units if the batch is large enough


class Inputs(NamedTuple):
    """The arguments, padded from Dh to D; in kernels all flat. Arguments that are None have shape (0,)."""

    q: NDArray  # (B, T, H, D)
    k: NDArray  # (B, S, H, D), and so v
    v: NDArray
    r: NDArray  # (S, H, D)
    u: NDArray  # (H, D), and so w
    w: NDArray
    pk: NDArray  # (H, N, D), and so pv
    pv: NDArray


class Gradients(NamedTuple):
    """Where backward puts its results, flat. Gradients of what the batch shares have a slot for each group of it."""

    dq: NDArray  # (B, T, H, D)
    dk: NDArray  # (B, S, H, D), and so dv
    dv: NDArray
    dr: NDArray  # (groups, S, H, D)
    dpk: NDArray  # (groups, H, N, D), and so dpv
    dpv: NDArray
    duw: NDArray  # (groups, H, 2, D)
    dgate: NDArray  # (groups, H)


class Panels(NamedTuple):
    """Where a head's panels begin in its scratch: those of r at 0, the largest distance first."""

    front: int  # rows of zeros before r, so that every tile's positions begin at a whole panel
    pk: int
    pv: int  # in forward, pv as rows
    k: int
    v: int  # not in forward
    end: int


class Visible(NamedTuple):
    """The context keys that a tile of queries sees."""

    first: int  # number of the first one, rounded down to a panel
    keys: int  # how many, from there on
    own: int  # number of the first query's own key, at distance 0
    positions: int  # row in r's panels of column 0 of the position scores
    unread: int  # columns of position scores before the first one that a query needs, in whole panels


class Tile(NamedTuple):
    """What backward reads of a tile of queries, and where it sums their gradients."""

    queries: NDArray  # (3, TILE, D), see `load_queries`
    dqueries: NDArray  # their gradients
    do: NDArray  # (TILE, D)
    lse: NDArray  # (TILE,)
    delta: NDArray  # Σ do · o, (TILE,)


class AttentionCache(NamedTuple):
    """This is what `attention_backward` needs; B, T, H and D are in `sizes`."""

    x: Inputs
    gate: NDArray | None
    scale: float
    sizes: Sizes
    dropout: Dropout
    out: NDArray  # head outputs before their gates, (B, T, H, D)
    lse: NDArray  # base-2 logarithm of Σ_j 2^s_j, (B, H, T)
    o: NDArray  # `out` without padding, (B, T, H, Dh)


@kernel
def panel_places(sizes, width):
    """Return where the panels of one head, `width` keys in each, begin in its scratch."""
    front = -sizes.T % TILE
    positions = round_up(front + sizes.S, TILE) if sizes.relative else 0
    persistent = round_up(sizes.N, width)
    context = round_up(sizes.S, TILE) + TILE  # the last tile of queries reaches beyond the last key
    pk = positions * sizes.D
    pv = pk + persistent * sizes.D
    k = pv + persistent * sizes.D
    v = k + context * sizes.D
    return Panels(front, pk, pv, k, v, v + context * sizes.D)


@inner
def range_of_part(i, n, units):
    """Return where part i begins and ends, if `units` are cut in n parts of nearly the same size."""
    return i * units // n, (i + 1) * units // n


@inner
def pack_parameters(x, h, panels, places, sizes):
    """Pack head h's r and pk, which all batch entries share."""
    H, S, N, D = sizes.H, sizes.S, sizes.N, sizes.D
    width, zero = 2 * lanes(x.q), int64(0)
    if sizes.relative:
        pack_rows(x.r, ((S - 1) * H + h) * D, -H * D, S, panels, zero, places.front, places.pk // (width * D), D, 1.0)
    pack_rows(x.pk, h * N * D, D, N, panels, places.pk, zero, (places.pv - places.pk) // (width * D), D, 1.0)


@inner
def load_queries(x, b, h, t0, sizes, queries):
    """Load three scaled tiles of queries from t0 on: q · log2 e, (q + u) · log2 e / √Dh, (q + w) · log2 e / √Dh.

    Rows after the last query are zero. Without relative positions the second has no u, and there is no third.
    """
    W, D = lanes(queries), sizes.D
    size = TILE * D
    count = min(TILE, sizes.T - t0)
    log2_e, both = broadcast(queries, LOG2_E), broadcast(queries, LOG2_E * sizes.score_scale)
    for t in range(count):
        at = ((b * sizes.T + t0 + t) * sizes.H + h) * D
        for d in range(0, D, W):
            q = load(x.q, at + d)
            i = t * D + d
            store(queries, i, multiply(q, log2_e))
            if sizes.relative:
                store(queries, i + size, multiply(add(q, load(x.u, h * D + d)), both))
                store(queries, i + 2 * size, multiply(add(q, load(x.w, h * D + d)), both))
            else:
                store(queries, i + size, multiply(q, both))
    for copy in range(3):
        fill_zero(queries, copy * size + count * D, size - count * D)


@inner
def visible_keys(t0, sizes, front, width):
    """Return which context keys the queries t0 … t0 + TILE − 1 see."""
    # Key j is at distance own + t − j of query t, and row front + i of r's panels holds distance S − 1 − i.
    own = t0 + sizes.S - sizes.T
    first = max(0, own - sizes.span) // width * width
    unread = max(0, own - sizes.span - first + TILE - 1) // width * width
    return Visible(first, own + TILE - first, own, sizes.T + front - t0 - TILE + first, unread)


@inner
def context_scores(queries, panels, places, visible, a, n, ready, s, sizes, mask):
    """Compute the scores of n context keys, from the a-th visible one on, at s[TILE + a]; masked ones may be missing.

    They need TILE more columns of position scores than n; those before `ready` exist. Returns how many exist now.
    """
    D, row = sizes.D, sizes.row
    width = 2 * lanes(s)
    keys = places.k + (visible.first + a) * D
    if not sizes.relative:
        scores(queries, TILE * D, panels, keys, n, s, TILE + a, row, D, mask, False)
        return ready
    needed = min(round_up(visible.keys, width), a + n + TILE)
    if needed > ready:
        at = (visible.positions + ready) * D
        scores(queries, 2 * TILE * D, panels, at, needed - ready, s, 1 + ready, row + 1, D, EVERY_KEY, False)
    scores(queries, TILE * D, panels, keys, n, s, TILE + a, row, D, mask, True)
    return needed


@inner
def head_forward(x, factor, out, lse, gated, b, h, sizes, dropout, places, scratch):
    """Compute out, lse and gated = factor · out of one head of one batch entry.

    The head's panels of r and pk and rows of pv exist already. Persistent keys come first, then context keys.
    """
    never_inline()
    _, T, S, N, H, D, span, row = sizes[:8]
    queries, running, s, panels = scratch
    W = lanes(s)
    width = 2 * W
    zero = int64(0)
    edge = int64(TILE)  # a tile's scores begin TILE later, so that the longer rows can begin earlier
    stride = H * D
    k_at = (b * S * H + h) * D
    pack_rows(x.k, k_at, stride, S, panels, places.k, zero, (places.v - places.k) // (width * D), D, 1.0)
    for t0 in range(0, T, TILE):
        entry = ((b * H + h) * T + t0) * (S + N)
        load_queries(x, b, h, t0, sizes, queries)
        fill_zero(running.out, zero, TILE * D)
        fill_zero(running.sum, zero, TILE * W)
        running.max[:] = LOWEST
        for a in range(0, N, CHUNK):
            n = min(CHUNK, N - a)
            wide = round_up(n, width)
            mask = Mask(zero, n, zero)
            scores(queries, zero, panels, places.pk + a * D, wide, s, edge, row, D, mask, False)
            softmax_rows(s, edge, wide, mask, running, entry + S + a, sizes, dropout)
            mix(s, edge, row, panels, places.pv + a * D, D, n, running.out, zero, D, mask)
        visible = visible_keys(t0, sizes, places.front, width)
        ready = visible.unread
        for a in range(0, visible.keys, CHUNK):
            n = min(CHUNK, visible.keys - a)
            wide, first = round_up(n, width), visible.first + a
            own = visible.own - first  # the first query's own key among these
            mask = Mask(own - span, own + 1, int64(1))
            ready = context_scores(queries, panels, places, visible, a, wide, ready, s, sizes, mask)
            softmax_rows(s, edge + a, wide, mask, running, entry + first, sizes, dropout)
            n = min(n, S - first)  # the last tile may reach beyond the last key, where x.v has no row
            mix(s, edge + a, row, x.v, k_at + first * stride, stride, n, running.out, zero, D, mask)
        for t in range(min(TILE, T - t0)):
            weights = total(load(running.sum, t * W))
            lse[(b * H + h) * T + t0 + t] = running.max[t] + math.log(weights) * LOG2_E
            inverse, factors = broadcast(s, dropout.factor / weights), broadcast(s, factor)
            for d in range(0, D, W):
                at = ((b * T + t0 + t) * H + h) * D + d
                o = multiply(load(running.out, t * D + d), inverse)
                store(out, at, o)
                store(gated, at, multiply(o, factors))


@inner
def forward_scratch(memory, sizes):
    """Split a worker's scratch into three tiles of queries, their online softmax, their scores and panels."""
    W = lanes(memory)
    size, s_size = TILE * sizes.D, TILE * (sizes.row + 2)
    queries, out, memory = memory[: 3 * size], memory[3 * size : 4 * size], memory[4 * size :]
    top, sums, memory = memory[:TILE], memory[TILE : TILE + TILE * W], memory[TILE + TILE * W :]
    return queries, Running(top, sums, out), memory[:s_size], memory[s_size:]


@inner
def forward_heads(counter, parts, x, factors, out, lse, gated, sizes, dropout, memory):
    """Compute parts of the units until none is left. Unit h · B + b: a head's entries in a row, to pack it once."""
    x, sizes, dropout = Inputs(*x), Sizes(*sizes), Dropout(*dropout)
    B, _, _, N, H, D = sizes[:6]
    W = lanes(out)
    places = panel_places(sizes, 2 * W)
    scratch = forward_scratch(memory, sizes)
    panels = scratch[3]
    packed = -1
    part = fetch_add(counter)
    while part < parts:
        for unit in range(*range_of_part(part, parts, B * H)):
            h, b = unit // B, unit % B
            if h != packed:
                pack_parameters(x, h, panels, places, sizes)
                pv_scale = broadcast(out, sizes.pv_scale)
                for n in range(0, N * D, W):
                    store(panels, places.pv + n, multiply(load(x.pv, h * N * D + n), pv_scale))
                packed = h
            head_forward(x, factors[h], out, lse, gated, b, h, sizes, dropout, places, scratch)
        part = fetch_add(counter)


@parallel_kernel
def forward(x, factors, out, lse, gated, sizes, dropout, parts, scratch):
    """Compute all heads, in a thread for each row of scratch. Numba passes only plain tuples into a parallel loop."""
    counter = np.empty(1, np.int64)
    counter[0] = 0
    for i in prange(len(scratch)):
        forward_heads(counter, parts, x, factors, out, lse, gated, sizes, dropout, scratch[i])


@inner
def load_gradients(dout, out, lse, b, h, t0, factor, sizes, tile, gate_sum):
    """Load do = factor · dout, lse and delta of a tile of queries; returns `gate_sum` + Σ dout · o."""
    T, H, D = sizes.T, sizes.H, sizes.D
    W = lanes(dout)
    factors = broadcast(dout, factor)
    fill_zero(tile.do, int64(0), TILE * D)
    for t in range(min(TILE, T - t0)):
        at = ((b * T + t0 + t) * H + h) * D
        products = broadcast(dout, 0.0)
        for d in range(0, D, W):
            g = load(dout, at + d)
            products = muladd(g, load(out, at + d), products)
            store(tile.do, t * D + d, multiply(g, factors))
        tile.lse[t] = lse[(b * H + h) * T + t0 + t]
        dot = total(products)
        gate_sum += dot
        tile.delta[t] = dot * factor
    return gate_sum


@inner
def store_gradients(dqueries, b, h, t0, grad, duw_at, sizes):
    """Store a tile's dq, which sums the gradients of q, q + u and q + w; add to du and dw at duw_at."""
    T, H, D = sizes.T, sizes.H, sizes.D
    W = lanes(dqueries)
    size, root = TILE * D, broadcast(dqueries, sizes.score_scale)
    for t in range(min(TILE, T - t0)):
        for d in range(0, D, W):
            i = t * D + d
            content = multiply(load(dqueries, i + size), root)
            gradient = add(load(dqueries, i), content)
            if sizes.relative:
                position = multiply(load(dqueries, i + 2 * size), root)
                gradient = add(gradient, position)
                store(grad.duw, duw_at + d, add(load(grad.duw, duw_at + d), content))
                store(grad.duw, duw_at + D + d, add(load(grad.duw, duw_at + D + d), position))
            store(grad.dq, ((b * T + t0 + t) * H + h) * D + d, gradient)


@inner
def persistent_backward(x, h, count, entry, sizes, dropout, places, scratch):
    """Add what the persistent keys contribute to the gradients of a tile's queries, and these to those of pk and pv."""
    S, N, D, row = sizes.S, sizes.N, sizes.D, sizes.row
    tile, s, ds, panels, d_panels = scratch
    zero, edge = int64(0), int64(TILE)
    for a in range(0, N, CHUNK):
        n = min(CHUNK, N - a)
        wide = round_up(n, 2 * lanes(s))
        pk, pv = places.pk + a * D, places.pv + a * D
        mask = Mask(zero, n, zero)
        scores(tile.queries, zero, panels, pk, wide, s, edge, row, D, mask, False)
        scores(tile.do, zero, panels, pv, wide, ds, edge, row, D, mask, False)
        at = entry + S + a
        softmax_rows_backward(s, ds, edge, wide, mask, count, tile.lse, tile.delta, at, sizes, dropout)
        mix(ds, edge, row, x.pk, (h * N + a) * D, D, n, tile.dqueries, zero, D, mask)
        outer(tile.do, zero, s, edge, row, wide, d_panels, pv, D, mask)
        outer(tile.queries, zero, ds, edge, row, wide, d_panels, pk, D, mask)


@inner
def context_backward(x, b, h, t0, count, entry, sizes, dropout, places, scratch):
    """Add what the context keys contribute to the gradients of a tile's queries, and these to those of k, v and r."""
    S, H, D, row = sizes.S, sizes.H, sizes.D, sizes.row
    tile, s, ds, panels, d_panels = scratch
    zero, width, q_u = int64(0), 2 * lanes(s), TILE * D
    visible = visible_keys(t0, sizes, places.front, width)
    ready = visible.unread
    for a in range(0, visible.keys, CHUNK):
        n = min(CHUNK, visible.keys - a)
        wide, first = round_up(n, width), visible.first + a
        k, v = places.k + first * D, places.v + first * D
        at, own = TILE + a, visible.own - first
        mask = Mask(own - sizes.span, own + 1, int64(1))
        ready = context_scores(tile.queries, panels, places, visible, a, wide, ready, s, sizes, mask)
        scores(tile.do, zero, panels, v, wide, ds, at, row, D, mask, False)
        entry_0 = entry + first
        softmax_rows_backward(s, ds, at, wide, mask, count, tile.lse, tile.delta, entry_0, sizes, dropout)
        k_at, n_keys = ((b * S + first) * H + h) * D, min(n, S - first)
        mix(ds, at, row, x.k, k_at, H * D, n_keys, tile.dqueries, q_u, D, mask)
        outer(tile.do, zero, s, at, row, wide, d_panels, v, D, mask)
        outer(tile.queries, q_u, ds, at, row, wide, d_panels, k, D, mask)
        if sizes.relative:
            positions_backward(x, h, visible, a, n, sizes, places, scratch)


@inner
def positions_backward(x, h, visible, a, n, sizes, places, scratch):
    """Add what the columns a … a + n − 1 of position scores contribute to the gradients of q + w, and to that of r.

    They are complete as soon as ds of the keys up to a + n is known. The first ones are empty: no query sees so far, or
    they are farther than S − 1.
    """
    H, D, row = sizes.H, sizes.D, sizes.row + 1  # the longer rows
    tile, _, ds, _, d_panels = scratch
    width, q_w = 2 * lanes(ds), 2 * TILE * D
    position, own = visible.positions + a, visible.own - visible.first - a
    skip = max(0, own - sizes.span + TILE - 1, places.front - position)
    distance = sizes.S - 1 - (position - places.front + skip)
    r_at, at = (distance * H + h) * D, 1 + a + skip
    mix(ds, at, row, x.r, r_at, -H * D, n - skip, tile.dqueries, q_w, D, EVERY_KEY)
    skip = skip // width * width
    to, at, wide = (position + skip) * D, 1 + a + skip, round_up(n, width) - skip
    outer(tile.queries, q_w, ds, at, row, wide, d_panels, to, D, EVERY_KEY)


@inner
def head_backward(x, out, lse, dout, grad, slot, b, factor, sizes, dropout, places, scratch):
    """Compute dq, dk and dv of one head of one batch entry, and add to the gradients of r, pk, pv, u and w.

    `slot` = group · H + h. The panels of r, pk and pv exist already; those of k and v are packed here. The gradients of
    all of them are summed in d_panels, in the same places.

    Returns Σ dout · o, from which the gate's gradient comes.
    """
    never_inline()
    _, T, S, N, H, D = sizes[:6]
    tile, _, ds, panels, d_panels = scratch
    h, zero = slot % H, int64(0)
    width, stride, k_at = 2 * lanes(ds), H * D, (b * S * H + h) * D
    context = (places.v - places.k) // (width * D)  # panels of k, and as many of v
    pack_rows(x.k, k_at, stride, S, panels, places.k, zero, context, D, 1.0)
    pack_rows(x.v, k_at, stride, S, panels, places.v, zero, context, D, 1.0)
    fill_zero(d_panels, places.k, places.end - places.k)
    gate_sum = 0.0
    for t in range(TILE):
        fill_zero(ds, t * sizes.row, int64(TILE))  # before key 0
    for t0 in range(0, T, TILE):
        count, entry = min(TILE, T - t0), ((b * H + h) * T + t0) * (S + N)
        load_queries(x, b, h, t0, sizes, tile.queries)
        fill_zero(tile.dqueries, zero, 3 * TILE * D)
        gate_sum = load_gradients(dout, out, lse, b, h, t0, factor, sizes, tile, gate_sum)
        persistent_backward(x, h, count, entry, sizes, dropout, places, scratch)
        context_backward(x, b, h, t0, count, entry, sizes, dropout, places, scratch)
        store_gradients(tile.dqueries, b, h, t0, grad, slot * 2 * D, sizes)
    unpack_rows(d_panels, places.k, zero, S, grad.dk, k_at, stride, D, LN_2)
    unpack_rows(d_panels, places.v, zero, S, grad.dv, k_at, stride, D, 1.0)
    return gate_sum


@inner
def backward_scratch(memory, sizes, places):
    """Split a worker's scratch into a tile, its scores and their gradients, panels and their gradients."""
    size, s_size = TILE * sizes.D, TILE * (sizes.row + 2)
    queries, dqueries, do = memory[: 3 * size], memory[3 * size : 6 * size], memory[6 * size : 7 * size]
    memory = memory[7 * size :]
    tile = Tile(queries, dqueries, do, memory[:TILE], memory[TILE : 2 * TILE])
    memory = memory[2 * TILE :]
    s, ds, memory = memory[:s_size], memory[s_size : 2 * s_size], memory[2 * s_size :]
    return tile, s, ds, memory[: places.end], memory[places.end :]


@inner
def closed_head_backward(out, dout, grad, h, group, first, end, sizes):
    """Zero the gradients of a head whose gate is 0, for some batch entries; returns the gate's gradient, Σ dout · o."""
    never_inline()
    _, T, S, N, H, D = sizes[:6]
    slot = group * H + h
    gate_sum = 0.0
    for t in range(first * T, end * T):
        at = (t * H + h) * D
        products = broadcast(dout, 0.0)
        for d in range(at, at + D, lanes(dout)):
            products = muladd(load(dout, d), load(out, d), products)
        gate_sum += total(products)
        fill_zero(grad.dq, at, D)
    for j in range(first * S, end * S):
        fill_zero(grad.dk, (j * H + h) * D, D)
        fill_zero(grad.dv, (j * H + h) * D, D)
    if sizes.relative:
        for j in range(group * S, (group + 1) * S):
            fill_zero(grad.dr, (j * H + h) * D, D)
    fill_zero(grad.dpk, slot * N * D, N * D)
    fill_zero(grad.dpv, slot * N * D, N * D)
    return gate_sum


@inner
def backward_heads(counter, x, out, lse, dout, grad, factors, groups, sizes, dropout, memory):
    """Compute units until none is left. Unit h · groups + group is head h for a group of batch entries."""
    x, grad, sizes, dropout = Inputs(*x), Gradients(*grad), Sizes(*sizes), Dropout(*dropout)
    B, _, S, N, H, D = sizes[:6]
    width, zero = 2 * lanes(dout), int64(0)
    places = panel_places(sizes, width)
    scratch = backward_scratch(memory, sizes, places)
    panels, d_panels = scratch[3], scratch[4]
    unit = fetch_add(counter)
    while unit < groups * H:
        h, group = unit // groups, unit % groups
        slot = group * H + h
        first, end = range_of_part(group, groups, B)
        fill_zero(grad.duw, slot * 2 * D, 2 * D)
        gate_sum = 0.0
        if factors[h] == 0:
            gate_sum = closed_head_backward(out, dout, grad, h, group, first, end, sizes)
        else:
            pack_parameters(x, h, panels, places, sizes)
            pv_panels = (places.k - places.pv) // (width * D)
            pack_rows(x.pv, h * N * D, D, N, panels, places.pv, zero, pv_panels, D, sizes.pv_scale)
            fill_zero(d_panels, zero, places.k)
            for b in range(first, end):
                gate_sum += head_backward(x, out, lse, dout, grad, slot, b, factors[h], sizes, dropout, places, scratch)
            if sizes.relative:
                unpack_rows(
                    d_panels, zero, places.front, S, grad.dr, ((group * S + S - 1) * H + h) * D, -H * D, D, LN_2
                )
            unpack_rows(d_panels, places.pk, zero, N, grad.dpk, slot * N * D, D, D, LN_2)
            unpack_rows(d_panels, places.pv, zero, N, grad.dpv, slot * N * D, D, D, sizes.pv_scale)
        grad.dgate[slot] = gate_sum
        unit = fetch_add(counter)


@parallel_kernel
def backward(x, out, lse, dout, grad, factors, groups, sizes, dropout, scratch):
    """Compute all heads, as `forward`."""
    counter = np.empty(1, np.int64)
    counter[0] = 0
    for i in prange(len(scratch)):
        backward_heads(counter, x, out, lse, dout, grad, factors, groups, sizes, dropout, scratch[i])


@kernel
def add_groups(x, groups, size):
    """Sum the groups' slots, in order, into x[:size]."""
    W = lanes(x)
    for group in range(1, groups):
        for i in range(0, size, W):
            store(x, i, add(load(x, i), load(x, group * size + i)))


def padded(x: NDArray | None, D: int, dtype: np.dtype) -> NDArray:
    """Return `x`, contiguous, its last axis padded to D with zeros; itself if it fits already; (0,) for None."""
    if x is None:
        return np.empty(0, dtype)
    if x.shape[-1] == D:
        return contiguous(x)
    wide = empty((*x.shape[:-1], D), dtype)
    wide[..., : x.shape[-1]], wide[..., x.shape[-1] :] = x, 0
    return wide


def narrow(x: NDArray, Dh: int) -> NDArray:
    """Remove the padding: (…, D) → (…, Dh)."""
    return x if x.shape[-1] == Dh else contiguous(x[..., :Dh])


@lru_cache(maxsize=64)
def scratch_panels(sizes: Sizes, dtype: np.dtype) -> Panels:
    """Call `panel_places` from Python, where each training step needs the same ones."""
    return panel_places.py_func(sizes, 2 * VECTOR_BYTES // dtype.itemsize)


def flat(arrays: Iterable[NDArray]) -> tuple[NDArray, ...]:
    """Return flat views in a plain tuple, which a kernel accepts in a tenth of the time that a named one takes."""
    return tuple(x.ravel() for x in arrays)


def attention_forward(
    q: NDArray,
    k: NDArray,
    v: NDArray,
    r: NDArray | None = None,
    u: NDArray | None = None,
    w: NDArray | None = None,
    pk: NDArray | None = None,
    pv: NDArray | None = None,
    gate: NDArray | None = None,
    *,
    span: int | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[NDArray, AttentionCache]:
    """`tinyprune.ops.attention_forward`, compiled: float32 or float64, one dtype for all.

    The cache holds the head outputs `o`, which are the result itself if no gate or scale changes them, but no weights.

    Raises:
        ValueError: as in the textbook, and for any other dtype.
    """
    check_arguments(q, k, v, r, u, w, pk, pv, gate, span, dropout)
    check_floats(q=q, k=k, v=v, r=r, u=u, w=w, pk=pk, pv=pv, gate=gate)
    B, T, H, Dh = q.shape
    S, N = k.shape[1], 0 if pk is None else pk.shape[1]
    dtype, W = q.dtype, VECTOR_BYTES // q.itemsize
    D = round_up(Dh, max(W, ROWS))  # whole vectors, and whole rows of a register tile
    # a row of a tile's scores has room for all context keys, or for a chunk of persistent ones
    row = max(round_up(S, TILE) + TILE, min(round_up(N, TILE), CHUNK)) + 2 * TILE
    span = S if span is None else span
    sizes = Sizes(B, T, S, N, H, D, span, row, r is not None, 1 / math.sqrt(Dh), math.sqrt(N))
    x = Inputs(*(padded(x, D, dtype) for x in (q, k, v, r, u, w, pk, pv)))
    drops = draw_mask(dropout, rng)

    out, lse = empty((B, T, H, D), dtype), empty((B, H, T), dtype)
    gated = out if gate is None and scale == 1 else empty((B, T, H, D), dtype)
    factors = np.full(H, scale, dtype) if gate is None else gate * dtype.type(scale)
    size = TILE * (4 * D + 1 + W + sizes.row + 2) + scratch_panels(sizes, dtype).v  # see `forward_scratch`
    workers = max(1, min(get_num_threads(), B * H))
    scratch, parts = empty((workers, size), dtype), min(PARTS * workers, B * H)
    forward(flat(x), factors, *flat((out, lse, gated)), tuple(sizes), tuple(drops), parts, scratch)
    o = narrow(out, Dh)
    return o if gated is out else narrow(gated, Dh), AttentionCache(x, gate, float(scale), sizes, drops, out, lse, o)


def attention_backward(dout: NDArray, cache: AttentionCache) -> tuple[NDArray | None, ...]:
    """Gradients of `attention_forward` in argument order, as `ops.attention_backward`; None for what was None."""
    x, gate, scale, sizes, dropout, out, lse, o = cache
    B, _, _, N, H, D, _, row, relative, _, _ = sizes
    Dh, dtype = o.shape[-1], o.dtype
    check_gradient(dout, o.shape, dtype)
    dout = padded(dout, D, dtype)
    groups = max(1, min(B, -(-UNITS // max(H, 1))))
    factors = np.full(H, scale, dtype) if gate is None else gate * dtype.type(scale)
    dq, dk, dv = (empty(y.shape, dtype) for y in (x.q, x.k, x.v))
    dr, dpk, dpv = (empty((groups, *y.shape), dtype) for y in (x.r, x.pk, x.pv))
    duw, dgate = empty((groups, H, 2, D), dtype), np.empty((groups, H))
    gradients = (dq, dk, dv, dr, dpk, dpv, duw, dgate)
    size = TILE * (7 * D + 2 + 2 * (row + 2)) + 2 * scratch_panels(sizes, dtype).end  # see `backward_scratch`
    scratch = empty((max(1, min(get_num_threads(), groups * H)), size), dtype)
    arrays = *flat((out, lse, dout)), flat(gradients)
    backward(flat(x), *arrays, factors, groups, tuple(sizes), tuple(dropout), scratch)
    for slots in (dr, dpk, dpv, duw):
        add_groups(slots.ravel(), groups, slots.size // groups)
    dr, du, dw = (narrow(y, Dh) for y in (dr[0], duw[0, :, 0], duw[0, :, 1])) if relative else (None, None, None)
    dpk, dpv = (narrow(y[0], Dh) for y in (dpk, dpv)) if N else (None, None)
    gate_gradient = None if gate is None else (dgate.sum(0) * scale).astype(dtype)
    return narrow(dq, Dh), narrow(dk, Dh), narrow(dv, Dh), dr, du, dw, dpk, dpv, gate_gradient
