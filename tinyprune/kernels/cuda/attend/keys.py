"""Attention backward for keys and values, those of the context (dk, dv, du) or persistent ones (dpk, dpv).

A block has a tile of keys with their values, and goes through the queries that see them:

    for each tile of queries:
        p   = 2^(s − lse)                          dv += (p · keep)ᵀ do
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta)      dk += dsᵀ (q + u)

In shared memory keys and values stay, and a turn replaces the rest twice:

    y       keys                                             } stay
    values  values                                           }
    x       q, for the scores      │ dout, for dv and do·v   │ q again, for dk
    z       position keys, a few   │ p · keep                │ ds
            columns at a time      │                         │                   at the end sums of ds, for du
            ───────────────────────┼─────────────────────────┼──────────────────
    s       scores, then p         │ p, or −p if dropped     │ ds                in registers
    da                             │ do·v                    │ do·v · keep       in registers

Weights are not negative. So their signs hold dropout's mask from the second step to the third: it takes no registers,
and is computed once.

A key of the context belongs to one batch entry. Persistent keys serve the whole batch: a block works on a group of
batch entries and writes to the slot of this group, and the slots are summed afterwards, in order. Their number depends
on the shapes alone, so no bit of the result depends on which block runs first.

The sums of ds over all queries stay in registers as well, for u: dk += (Σ_i ds) u and du += (Σ_i ds) k. The kernel
computes with dout in place of do, and multiplies by the gate at the end, as in `queries`.
"""

from typing import NamedTuple

from tinyprune.kernels.cuda.attend import steps, tiles
from tinyprune.kernels.cuda.attend.inputs import Inputs, KeyGradients, KeyRows, Saved, Scales, Sizes
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Layout, Source
from tinyprune.kernels.cuda.attend.walk import gate_of, source_of
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, exp2, rounded_product
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, int32
from tinyprune.kernels.cuda.dropout import DROPOUT


def keys_layout(width: int, has_values: bool = True) -> Layout:
    """Return the constants of a width; `distances` has no values, and distances in place of keys."""
    queries, keys = (64, 32) if width == 64 else (32, 64)
    n = tiles.layout(width, queries, keys)
    x = n.keys * n.x_stride * (1 + has_values)
    z = x + n.queries * n.x_stride
    room = max(n.z_rows * n.z_stride, n.queries * n.p_stride, n.keys * (n.queries // ROWS))
    return n._replace(values=n.keys * n.x_stride, x=x, z=z, p=z, size=z + room)


class Seen(NamedTuple):
    """Which queries see a tile of keys, and what a thread needs to know at the first tile of them."""

    begin: int
    end: int
    last: int  # as the next two of `steps.hide`
    rise: int
    span: int
    entry: int  # of the thread's first key in a query's row of dropout


@device
def seen_by(n, context, sizes, place, first):
    """Return the queries that see the keys from `first` on."""
    T, N, M = sizes.T, sizes.N, sizes.S - sizes.T
    j = first + place.j
    if not context:
        return Seen(0, T, N - 1 - j, 0, N, sizes.S + j)
    begin, end = max(0, first - M), int32(min(T, first + n.keys - M + sizes.span))
    return Seen(begin, end, begin + M - j + place.i, n.side, sizes.span, j)


# In these, `at` is the index in `saved.lse` and `saved.delta` of the thread's first query; `left` queries are left.


@device
def to_weights(n, saved, at, left, score, s):
    """Set scores s to the weights p of forward."""
    for m in range(ROWS):
        lse = saved.lse[at + m * n.side] if m * n.side < left else -LOWEST
        for c in range(COLUMNS):
            s[m * COLUMNS + c] = exp2(rounded_product(s[m * COLUMNS + c], score) - lse)


@device
def store_gradients(n, smem, p, saved, at, left, weight, s, da, ds_sums):
    """Store ds in shared memory, from s = p and da = do·v · keep; add its sums over the queries to `ds_sums`."""
    for m in range(ROWS):
        delta = saved.delta[at + m * n.side] if m * n.side < left else float32(0)
        for c in range(COLUMNS):
            gradient = s[m * COLUMNS + c] * (da[m * COLUMNS + c] * weight - delta)
            ds_sums[c] += gradient
            s[m * COLUMNS + c] = gradient
    steps.store_weights(n, smem, p, s)


@device
def store_dropped(n, smem, p, entry, row_entries, dropout, s, da):
    """Store p · keep in shared memory, from s = p ≥ 0, and make s negative where dropout takes p out."""
    for k in range(ROWS * COLUMNS):
        da[k] = s[k]
    steps.drop(da, entry, row_entries, n.side, dropout)
    if dropout.limit > 0:
        for k in range(ROWS * COLUMNS):
            if not da[k] > 0:
                s[k] = -s[k]
    steps.store_weights(n, smem, p, da)


@device
def drop_negative(dropout, s, da):
    """Set da to zero where `store_dropped` made s negative, and make s positive again."""
    if dropout.limit > 0:
        for k in range(ROWS * COLUMNS):
            if s[k] < 0:
                da[k], s[k] = float32(0), -s[k]


@device
def write_gradients(n, smem, out, sizes, keys, first, scales, factor, dk_sums, dv_sums):
    """Write dk, dv and du, times the gate, `factor`."""
    slot, h = cuda.blockIdx.x, cuda.blockIdx.y
    out_column, d = tiles.first_key_out(n)
    key_factor, weight_factor = scales.gradient * factor, scales.weight * factor
    for m in range(n.out_keys):
        key = tiles.key_of(n, out_column + m)
        if first + key < keys.count and d < sizes.W:
            at = slot * keys.slot_stride + h * keys.head_stride + (first + key) * keys.key_stride + d
            steps.write(out.dv, at, dv_sums, m, weight_factor)
            if sizes.relative:
                steps.add_bias(n, smem, key, out.u, h * sizes.W + d, dk_sums, m)
            steps.write(out.dk, at, dk_sums, m, key_factor)
    if sizes.relative:
        steps.write_bias_gradient(n, smem, sizes, out.du, key_factor)


def make_keys_backward(n: Layout) -> Kernel:
    """Make the kernel of a width."""
    SIZE, SCORES, Z_REGS, SUMS = n.size, ROWS * COLUMNS, n.z_regs, 4 * n.out_keys

    @tiles.kernel_of(n, Inputs, Saved, KeyGradients, Sizes, KeyRows, Scales, int32, DROPOUT)
    def keys_backward(g, saved, out, sizes, keys, scales, context, dropout):
        """Compute dk and dv: a block for a tile of keys, grid (slots, H, tiles).

        g: `Inputs`.   out: `KeyGradients`.   context: whether g.k and g.v are those of the context, or persistent ones,
        for which sizes.relative is 0.
        """
        B, T, S, H, N, W = sizes.B, sizes.T, sizes.S, sizes.H, sizes.N, sizes.W
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        ds_sums = cuda.local.array(COLUMNS, float32)
        dk_sums = cuda.local.array(SUMS, float32)
        dv_sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * n.keys)
        place = tiles.first_score(n)
        out_column, d = tiles.first_key_out(n)
        k_begin = h * keys.head_stride
        if context:
            k_begin += slot * keys.slot_stride
        ks = Source(g.k, k_begin, keys.key_stride, keys.count, W)
        vs = Source(g.v, k_begin, keys.key_stride, keys.count, W)
        distances = source_of(g.r, 0, h, S, sizes)
        tiles.load_rows(n, ks, first, 0, smem, n.y, n.keys, n.width)
        tiles.load_rows(n, vs, first, 0, smem, n.values, n.keys, n.width)
        if sizes.relative:
            tiles.load_biases(n, g.key_bias, (h * B + slot) * S, S, first, smem, n.y, n.keys, n.width)
        tiles.clear(dk_sums, SUMS)
        tiles.clear(dv_sums, SUMS)
        tiles.clear(ds_sums, COLUMNS)
        factor = gate_of(g, sizes)

        seen = seen_by(n, context, sizes, place, first)
        end = seen.begin if factor == 0 else seen.end
        row_entries = n.side * (S + N)
        for b in range(slot * keys.group, min(B, (slot + 1) * keys.group)):
            queries, douts = source_of(g.q, b, h, T, sizes), source_of(saved.dout, b, h, T, sizes)
            at = (h * B + b) * T + seen.begin + place.i  # of the thread's first query
            last = int32(seen.last)
            entry = steps.add32(seen.entry, ((b * H + h) * T + seen.begin + place.i) * (S + N))
            for t0 in range(seen.begin, end, n.queries):
                left = T - t0 - place.i
                nearest = t0 + S - T - first - n.keys + 1  # distance of the first row of z
                tiles.load_rows(n, queries, t0, 0, smem, n.x, n.queries, n.width)
                if sizes.relative:
                    tiles.load_biases(n, g.distance_bias, h * S, S, nearest, smem, n.z, n.z_rows, n.z_columns)
                steps.scores(n, smem, place, distances, nearest, sizes.relative, z_regs, s)
                cuda.syncthreads()  # all threads have read queries and position keys, which dout and weights replace

                tiles.load_rows(n, douts, t0, 0, smem, n.x, n.queries, n.width)
                steps.hide(s, last, seen.rise, seen.span, n.side)
                to_weights(n, saved, at, left, scales.score, s)
                store_dropped(n, smem, place.p, entry, row_entries, dropout, s, da)
                tiles.clear(da, SCORES)
                cuda.syncthreads()  # dout and weights are there
                steps.outer(n, smem, n.p + out_column, n.x + d, dv_sums)
                steps.dots(n, smem, n.x + place.i * n.x_stride, n.values + place.j * n.x_stride, da)
                cuda.syncthreads()  # all threads have read dout and weights

                tiles.load_rows(n, queries, t0, 0, smem, n.x, n.queries, n.width)
                drop_negative(dropout, s, da)
                store_gradients(n, smem, place.p, saved, at, left, scales.weight, s, da, ds_sums)
                at += n.queries
                last = int32(last + n.queries // n.side * seen.rise)
                entry = steps.add32(entry, n.queries // n.side * row_entries)
                cuda.syncthreads()  # queries and gradients are there
                steps.outer(n, smem, n.p + out_column, n.x + d, dk_sums)
                cuda.syncthreads()  # all threads have read queries and gradients before the next tile is loaded

        if sizes.relative:
            steps.store_partial_sums(n, smem, place, ds_sums)
            cuda.syncthreads()  # all threads' sums of ds are there
        write_gradients(n, smem, out, sizes, keys, first, scales, factor, dk_sums, dv_sums)

    return keys_backward


KEYS_BACKWARD = {width: make_keys_backward(keys_layout(width)) for width in (16, 32, 64)}
