"""Attention backward for keys and values, those of the context (dk, dv, du) or persistent ones (dpk, dpv).

A block has a tile of keys with their values, and goes through the queries that see them:

    for each tile of queries:
        p   = 2^(s − lse)                          dv += (p · keep)ᵀ do
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta)      dk += dsᵀ (q + u)

A key of the context belongs to one batch entry. Persistent keys serve the whole batch: a block works on a group of
batch entries and writes to the slot of this group, and the slots are summed afterwards, in order. Their number depends
on the shapes alone, so no bit of the result depends on which block runs first.

The sums of ds over all queries stay in registers as well, for u: dk += (Σ_i ds) u and du += (Σ_i ds) k. The kernel
computes with dout in place of do, and multiplies by the gate at the end, as in `queries`.
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.attend.arguments import INPUTS, KEY_ROWS, SAVED, SCALES, SIZES
from tinyprune.kernels.cuda.attend.sums import add32, drop, hide, make_biases, make_mix, make_scores, store_row, write
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Tiles, clear, layout, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, exp2, rounded_product, thread_index
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def shared(tiles: Tiles, has_values: bool) -> tuple[int, int, int, int]:
    """Return where operands begin in shared memory, and its size:

    0    keys; in `distances`, distances
    V    values, which `distances` does not have
    X    queries, then dout, then queries
    Z    some columns of position keys, then p, then ds; at the end sums of ds
    """
    n = layout(tiles)
    rows = tiles.keys * n.x_stride
    x = rows * (1 + has_values)
    z = x + tiles.queries * n.x_stride
    room = max(n.z_rows * n.z_stride, tiles.queries * n.p_stride, tiles.keys * (tiles.queries // ROWS))
    return rows, x, z, z + room


@device
def queries_of(context, sizes, first, keys, i, j, side):
    """Return begin and end of the queries that see the tile of keys from `first` on; last, rise and span of `sums.hide`
    for the tile of queries at `begin`; and the number of the thread's first key j in a query's row of dropout.
    """
    T, S, _, N, _, span = sizes
    if not context:
        return 0, T, N - 1 - first - j, 0, N, S + first + j
    begin = max(0, first - (S - T))
    return begin, min(T, first + keys - (S - T) + span), begin + S - T - first + i - j, side, span, first + j


def make_gradients(tiles: Tiles) -> tuple[Callable, Callable, Callable, Callable]:
    """Make the functions for the weights of a tile, and for the gradients of its scores.

    at: index in `saved.lse` and `saved.delta` of the thread's first query; `left` queries exist from there on.
    """
    SIDE, SCORES, P_STRIDE = tiles.side, layout(tiles).scores, layout(tiles).p_stride

    @device
    def to_weights(saved, at, left, score, s):
        """Set scores s to the weights p of forward."""
        for m in range(ROWS):
            lse = saved.lse[at + m * SIDE] if m * SIDE < left else -LOWEST
            for c in range(COLUMNS):
                s[m * COLUMNS + c] = exp2(rounded_product(s[m * COLUMNS + c], score) - lse)

    @device
    def store_gradients(smem, p, saved, at, left, weight, s, da, ds_sums):
        """Store ds in shared memory, from s = p and da = do·v · keep; add its sums over the queries to `ds_sums`."""
        for m in range(ROWS):
            delta = saved.delta[at + m * SIDE] if m * SIDE < left else float32(0)
            for c in range(COLUMNS):
                gradient = s[m * COLUMNS + c] * (da[m * COLUMNS + c] * weight - delta)
                ds_sums[c] += gradient
                s[m * COLUMNS + c] = gradient
            store_row(smem, p + m * SIDE * P_STRIDE, s, m)

    @device
    def store_dropped(smem, p, entry, row_entries, dropout, s, da):
        """Store p · keep in shared memory, from s = p ≥ 0, and make s negative where dropout takes p out.

        So the mask takes no more registers, and need not be computed again.
        """
        for k in range(SCORES):
            da[k] = s[k]
        drop(da, entry, row_entries, SIDE, dropout)
        if dropout.limit > 0:
            for k in range(SCORES):
                s[k] = s[k] if da[k] > 0 else -s[k]
        for m in range(ROWS):
            store_row(smem, p + m * SIDE * P_STRIDE, da, m)

    @device
    def drop_negative(dropout, s, da):
        """Set da to zero where `store_dropped` made s negative, and make s positive again."""
        if dropout.limit > 0:
            for k in range(SCORES):
                da[k], s[k] = float32(0) if s[k] < 0 else da[k], abs(s[k])

    return to_weights, store_gradients, store_dropped, drop_negative


def make_keys_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes."""
    first_score, _, first_key_out, key_of = make_places(tiles)
    load_rows, load_biases = make_loads(tiles)
    (dots, _, scores), (_, _, mix_transposed) = make_scores(tiles, load_rows), make_mix(tiles)
    to_weights, store_gradients, store_dropped, drop_negative = make_gradients(tiles)
    D, QUERIES, KEYS, _, SIDE = tiles
    THREADS, RESIDENT, SCORES, _, OUT_KEYS, X_STRIDE, Z_STRIDE, P_STRIDE, Z_COLUMNS, Z_ROWS, Z_REGS = layout(tiles)
    (V, X, Z, SIZE), SUMS = shared(tiles, has_values=True), 4 * OUT_KEYS
    store_partial_sums, add_bias, write_bias_gradient = make_biases(tiles, Z)
    types = (INPUTS, SAVED, *4 * (floats,), int32, SIZES, KEY_ROWS, SCALES, *3 * (int32,), DROPOUT)

    @kernel(*types, name=f"keys_backward_{D}", threads=THREADS, resident=RESIDENT, tiles=tiles)
    def keys_backward(g, saved, u, dk, dv, du, B, sizes, keys, scales, context, relative, gated, dropout):
        """Compute dk and dv: a block for a tile of keys, grid (slots, H, tiles). du: (slots, tiles, H, W).

        g, saved: `Inputs`, `Saved`.   context: whether g.k and g.v are those of the context, or persistent ones.
        """
        T, S, H, N, W, _ = sizes
        score_factor, weight_factor, key_factor = scales
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        ds_sums = cuda.local.array(COLUMNS, float32)
        dk_sums = cuda.local.array(SUMS, float32)
        dv_sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * KEYS)
        i, j, column = first_score(thread_index(THREADS))
        out_column, d = first_key_out(thread_index(THREADS))
        p, z = Z + i * P_STRIDE + column, Z + (i - j + KEYS - 1) * Z_STRIDE
        step, M = int32(H * W), S - T  # entries from one position to the next; keys before the first query's
        k_at = h * keys.head_stride + (slot * keys.slot_stride if context else 0)
        load_rows(g.k, k_at, keys.key_stride, first, keys.count, 0, W, smem, 0, KEYS, D)
        load_rows(g.v, k_at, keys.key_stride, first, keys.count, 0, W, smem, V, KEYS, D)
        if relative:
            load_biases(g.key_bias, (h * B + slot) * S, first, S, smem, 0, KEYS, D)
        clear(dk_sums, SUMS)
        clear(dv_sums, SUMS)
        clear(ds_sums, COLUMNS)
        factor = g.gate[h] if gated else float32(1)

        begin, end, last_0, rise, span, entry_0 = queries_of(context, sizes, first, KEYS, i, j, SIDE)
        if factor == 0:
            end = begin
        row_entries = SIDE * (S + N)
        for b in range(slot * keys.group, min(B, (slot + 1) * keys.group)):
            q_at = b * T * step + h * W
            saved_at = (h * B + b) * T + begin + i  # of the thread's first query
            last, entry = int32(last_0), add32(entry_0, ((b * H + h) * T + begin + i) * (S + N))
            for t0 in range(begin, end, QUERIES):
                nearest = t0 + M - first - KEYS + 1  # distance of the first row of z
                load_rows(g.q, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
                if relative:
                    load_biases(g.distance_bias, h * S, nearest, S, smem, Z, Z_ROWS, Z_COLUMNS)
                scores(smem, X + i * X_STRIDE, j * X_STRIDE, z, Z, g.r, h * W, step, nearest, S, W, relative, z_regs, s)
                cuda.syncthreads()  # all threads have read queries and position keys, which dout and weights replace

                load_rows(saved.dout, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
                hide(s, last, rise, span, SIDE)
                to_weights(saved, saved_at, T - t0 - i, score_factor, s)
                store_dropped(smem, p, entry, row_entries, dropout, s, da)
                clear(da, SCORES)
                cuda.syncthreads()  # dout and weights are there
                mix_transposed(smem, Z + out_column, X + d, dv_sums)
                dots(smem, X + i * X_STRIDE, V + j * X_STRIDE, da)
                cuda.syncthreads()  # all threads have read dout and weights

                load_rows(g.q, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
                drop_negative(dropout, s, da)
                store_gradients(smem, p, saved, saved_at, T - t0 - i, weight_factor, s, da, ds_sums)
                saved_at += QUERIES
                last, entry = int32(last + QUERIES // SIDE * rise), add32(entry, QUERIES // SIDE * row_entries)
                cuda.syncthreads()  # queries and gradients are there
                mix_transposed(smem, Z + out_column, X + d, dk_sums)
                cuda.syncthreads()  # all threads have read queries and gradients before the next tile is loaded

        if relative:
            store_partial_sums(smem, i, j, ds_sums)
            cuda.syncthreads()  # all threads' sums of ds are there
        key_factor *= factor
        weight_factor *= factor
        for n in range(OUT_KEYS):
            key = key_of(out_column + n)
            if first + key < keys.count and d < W:
                at = slot * keys.slot_stride + h * keys.head_stride + (first + key) * keys.key_stride + d
                write(dv, at, dv_sums, n, weight_factor)
                if relative:
                    add_bias(smem, key, u, h * W + d, dk_sums, n)
                write(dk, at, dk_sums, n, key_factor)
        if relative:
            write_bias_gradient(smem, W, du, ((slot * cuda.gridDim.z + cuda.blockIdx.z) * H + h) * W, key_factor)

    return keys_backward


TILES = Tiles(16, queries=32, keys=64), Tiles(32, queries=32, keys=64), Tiles(64, queries=64, keys=32)
KEYS_BACKWARD = {tiles.width: make_keys_backward(tiles) for tiles in TILES}
