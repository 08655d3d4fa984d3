"""Attention backward for keys and values, those of the context (dk, dv, du) or persistent ones (dpk, dpv).

A block has a tile of keys with their values, and goes through the queries that see them:

    for each tile of queries:
        p   = 2^(s − lse)                          dv += (p · keep)ᵀ do
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta)      dk += dsᵀ (q + u)

A key of the context belongs to one batch entry. Persistent keys serve the whole batch: a block has a group of its
entries and writes to the group's own slot, and the slots are summed afterwards, in order. Their number depends on the
shapes alone, so no bit of the result depends on which block runs first.

The sums of ds over all queries stay in registers as well, for u: dk += (Σ_i ds) u and du += (Σ_i ds) k. Queries and
dout take turns in one region of shared memory; so do position keys, weights and ds.
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.attend.arguments import INPUTS, KEYS_OF, SAVED, SCALES, SIZES
from tinyprune.kernels.cuda.attend.sums import make_biases, make_masks, make_mix_turned, make_put, make_scores, write
from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import aligned, exp2, own_thread
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def shared(tiles: Tiles, has_values: bool) -> tuple[int, int, int, int]:
    """Return where operands begin in shared memory, and its size; keys, or distances, are the first.

    Values follow, which distances do not have; queries or dout; rows that slide, then weights, then ds, in the end its
    sums.
    """
    n = lengths(tiles)
    rows = tiles.keys * n.wide
    x = rows * (1 + has_values)
    z = x + tiles.queries * n.wide
    room = max(n.slides * n.narrow, tiles.queries * n.weights, tiles.keys * (tiles.queries // ROWS))
    return rows, x, z, z + room


@device
def queries_of(context, sizes, first, keys, i, j, side):
    """Return which queries see the keys from `first` on: begin and end, near, climb and reach, the first dropout entry.

    i, j: the thread's first query and key. As in `forward`, the thread's row m sees its keys c with
    near + m · climb − reach ≤ c · side ≤ near + m · climb.
    """
    T, S, _, N, _, span = sizes
    if not context:
        return 0, T, N - 1 - first - j, 0, N, S + first + j
    begin = max(0, first - (S - T))
    return begin, min(T, first + keys - (S - T) + span), begin + S - T - first + i - j, side, span, first + j


def make_gradients(tiles: Tiles, drop: Callable, put: Callable) -> tuple[Callable, Callable, Callable, Callable]:
    """Make the functions for the weights of a tile, and for the gradients of its scores."""
    SIDE, n = tiles.side, lengths(tiles)
    EACH, SCORES = n.each, n.scores

    @device
    def to_weights(saved, row, H, left, score, s):
        """Set scores s to the weights p of forward. left: queries from the thread's first one on."""
        for m in range(ROWS):
            lse = saved.lse[row + m * SIDE * H] if m * SIDE < left else -LOWEST
            for c in range(EACH):
                s[m * EACH + c] = exp2(s[m * EACH + c] * score - lse)

    @device
    def put_gradients(tile, weights, saved, row, H, left, weight, s, da, biased):
        """Store ds in shared memory, from s = p and da = do·v · keep; add its sums over the queries to `biased`."""
        for m in range(ROWS):
            delta = saved.delta[row + m * SIDE * H] if m * SIDE < left else float32(0)
            for c in range(EACH):
                gradient = s[m * EACH + c] * (da[m * EACH + c] * weight - delta)
                biased[c] += gradient
                s[m * EACH + c] = gradient
            put(tile, weights, s, m)

    @device
    def put_kept(tile, weights, entry, row_entries, dropout, s, da):
        """Store p · keep in shared memory, from s = p ≥ 0; turn the sign of s where dropout has taken p out."""
        for k in range(SCORES):
            da[k] = s[k]
        drop(da, entry, row_entries, SIDE, dropout)
        if dropout.limit > 0:
            for k in range(SCORES):
                s[k] = s[k] if da[k] > 0 else -s[k]
        for m in range(ROWS):
            put(tile, weights, da, m)

    @device
    def drop_marked(dropout, s, da):
        """Set da to zero where the sign of s is turned, and turn it back."""
        if dropout.limit > 0:
            for k in range(SCORES):
                da[k], s[k] = float32(0) if s[k] < 0 else da[k], abs(s[k])

    return to_weights, put_gradients, put_kept, drop_marked


def make_keys_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes."""
    score_place, _, key_place, key_in = make_places(tiles)
    bring, bring_beside = make_loads(tiles)
    dots, _, scores = make_scores(tiles, bring)
    (hide, drop), put, mix_turned = make_masks(tiles), make_put(tiles), make_mix_turned(tiles)
    D, QUERIES, KEYS, _, SIDE = tiles
    n, (V, X, Z, SIZE) = lengths(tiles), shared(tiles, has_values=True)
    THREADS, EACH, SCORES, OUT_KEYS, SUMS = n.threads, n.each, n.scores, n.out_keys, 4 * n.out_keys
    WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, SOME = n.wide, n.narrow, n.weights, n.columns, n.slides, n.some
    to_weights, put_gradients, put_kept, drop_marked = make_gradients(tiles, drop, put)
    put_shares, add_bias, put_bias_gradient = make_biases(tiles, Z)
    types = (INPUTS, SAVED, *4 * (floats,), int32, SIZES, KEYS_OF, SCALES, *3 * (int32,), DROPOUT)

    @kernel(*types, name=f"keys_backward_{D}", threads=THREADS, hot=True, resident=n.resident, tiles=tiles)
    def keys_backward(x, saved, u, dk, dv, du, B, sizes, keys, scales, context, relative, gated, dropout):
        """Compute dk and dv: a block for a tile of keys, grid (slots, H, tiles). du: (slots, tiles, H, W).

        context: whether x.k and x.v are those of the context, or else the persistent ones in their place.
        """
        T, S, H, N, W, _ = sizes
        to_score, to_weight, to_key = scales
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        biased = cuda.local.array(EACH, float32)
        dk_sums = cuda.local.array(SUMS, float32)
        dv_sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * KEYS)
        i, j, column = score_place(own_thread(THREADS))
        out_column, d = key_place(own_thread(THREADS))
        weights, z = Z + i * WEIGHTS + column, Z + (i - j + KEYS - 1) * NARROW
        step, M = int32(H * W), S - T
        k_at = h * keys.head + (slot * keys.slot if context else 0)
        bring(x.k, k_at, keys.row, first, keys.count, 0, W, tile, 0, KEYS, D)
        bring(x.v, k_at, keys.row, first, keys.count, 0, W, tile, V, KEYS, D)
        if relative:
            bring_beside(x.key_bias, slot * S * H + h, H, first, S, tile, 0, KEYS, D)
        clear(dk_sums, SUMS)
        clear(dv_sums, SUMS)
        clear(biased, EACH)
        factor = x.gate[h] if gated else float32(1)

        begin, end, near_0, climb, reach, entry_0 = queries_of(context, sizes, first, KEYS, i, j, SIDE)
        if factor == 0:
            end = begin
        row_entries = SIDE * (S + N)
        for b in range(slot * keys.group, min(B, (slot + 1) * keys.group)):
            q_at = b * T * step + h * W
            row = (b * T + begin + i) * H + h
            near, entry = int32(near_0), count_on(entry_0, ((b * H + h) * T + begin + i) * (S + N))
            for t0 in range(begin, end, QUERIES):
                distance = t0 + M - first - KEYS + 1  # of the first row that slides
                bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                if relative:
                    bring_beside(x.distance_bias, h, H, distance, S, tile, Z, SLIDES, COLUMNS)
                scores(tile, X + i * WIDE, j * WIDE, z, Z, x.r, h * W, step, distance, S, W, relative, some, s)
                cuda.syncthreads()  # all threads have read queries and position keys

                bring(saved.dout, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                hide(s, near, climb, reach)
                to_weights(saved, row, H, T - t0 - i, to_score, s)
                put_kept(tile, weights, entry, row_entries, dropout, s, da)
                clear(da, SCORES)
                cuda.syncthreads()  # dout and weights are there
                mix_turned(tile, Z + out_column, X + d, dv_sums)
                dots(tile, X + i * WIDE, V + j * WIDE, da)
                cuda.syncthreads()  # all threads have read them

                bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                drop_marked(dropout, s, da)
                put_gradients(tile, weights, saved, row, H, T - t0 - i, to_weight, s, da, biased)
                row += QUERIES * H
                near, entry = int32(near + QUERIES // SIDE * climb), count_on(entry, QUERIES // SIDE * row_entries)
                cuda.syncthreads()  # queries and gradients are there
                mix_turned(tile, Z + out_column, X + d, dk_sums)
                cuda.syncthreads()  # all threads have read them before the next tile is brought

        if relative:
            put_shares(tile, i, j, biased)
            cuda.syncthreads()  # all threads' sums of ds are there
        to_key *= factor
        to_weight *= factor
        for n in range(OUT_KEYS):
            key = key_in(out_column + n)
            if first + key < keys.count and d < W:
                at = slot * keys.slot + h * keys.head + (first + key) * keys.row + d
                write(dv, at, dv_sums, n, to_weight)
                if relative:
                    add_bias(tile, key, u, h * W + d, dk_sums, n)
                write(dk, at, dk_sums, n, to_key)
        if relative:
            put_bias_gradient(tile, W, du, ((slot * cuda.gridDim.z + cuda.blockIdx.z) * H + h) * W, to_key)

    return keys_backward


TILES = (
    Tiles(width=16, queries=32, keys=64),
    Tiles(width=32, queries=32, keys=64),
    Tiles(width=64, queries=64, keys=32),
)
KEYS_BACKWARD = {tiles.width: make_keys_backward(tiles) for tiles in TILES}
