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

from tinyprune.kernels.cuda.attend.arguments import INPUTS, KEYS_OF, SAVED, SCALES, SIZES
from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths, make_functions
from tinyprune.kernels.cuda.device.instructions import exp2, own_thread
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.vectors import aligned, load1, store1, store4
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def make_keys_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes."""
    # Steps of 8 need more registers than the 128 that a thread has with narrow tiles.
    f = make_functions(tiles, step=8 if tiles.width > 32 else 4)
    score_place, key_place, key_in, bring, bring_beside = f.score_place, f.key_place, f.key_in, f.bring, f.bring_beside
    dots, scores, hide, drop, put = f.dots, f.scores, f.hide, f.drop, f.put
    mix_turned, share_sum = f.mix_turned, f.share_sum
    D, QUERIES, KEYS, _, SIDE = tiles
    THREADS, EACH, SCORES, _, OUT_KEYS, WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, SOME = lengths(tiles)
    SUMS = 4 * OUT_KEYS
    SHARES = QUERIES // ROWS  # threads that share a key's scores
    RESIDENT = 4 if D <= 32 else 3  # blocks of a multiprocessor: their threads have 128 registers each, or 168
    # shared memory: keys; values; queries or dout; position keys, then weights, then ds
    V = KEYS * WIDE
    X = 2 * KEYS * WIDE
    Z = X + QUERIES * WIDE
    SIZE = Z + max(SLIDES * NARROW, QUERIES * WEIGHTS, KEYS * SHARES)

    types = (INPUTS, SAVED, *4 * (floats,), int32, SIZES, KEYS_OF, SCALES, float32, *3 * (int32,), DROPOUT)

    @kernel(*types, name=f"keys_backward_{D}", threads=THREADS, hot=True, resident=RESIDENT)
    def keys_backward(x, saved, u, dk, dv, du, B, sizes, keys, scales, to_key, context, relative, gated, dropout):
        """dk and dv: a block for a tile of keys, grid (slots, H, tiles). du: (slots, tiles, H, W).

        context: whether x.k and x.v are those of the context, or else the persistent ones in their place.
        """
        T, S, H, N, W, span = sizes
        to_score, to_weight = scales
        limit = dropout.limit
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        biased = cuda.local.array(EACH, float32)
        dk_sums = cuda.local.array(SUMS, float32)
        dv_sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * KEYS)
        thread = own_thread(THREADS)
        i, j, column = score_place(thread)
        out_column, d = key_place(thread)
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

        # Which queries see these keys. As in `forward`, the thread's row m sees its keys c with
        # near + m · climb − reach ≤ c · SIDE ≤ near + m · climb.
        if context:
            begin, end = max(0, first - M), min(T, first + KEYS - M + span)
            near_0, climb, reach, entry_0 = begin + M - first + i - j, SIDE, span, first + j
        else:
            begin, end = 0, T
            near_0, climb, reach, entry_0 = N - 1 - first - j, 0, N, S + first + j
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
                own_query, own_key = X + i * WIDE, j * WIDE
                scores(tile, own_query, own_key, z, Z, x.r, h * W, step, distance, S, W, relative, some, s)
                cuda.syncthreads()  # everyone has read queries and position keys

                bring(saved.dout, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                hide(s, near, climb, reach)
                for m in range(ROWS):
                    lse = saved.lse[row + m * SIDE * H] if t0 + i + m * SIDE < T else -LOWEST
                    for c in range(EACH):
                        p = exp2(s[m * EACH + c] * to_score - lse)
                        s[m * EACH + c], da[m * EACH + c] = p, p
                drop(da, entry, row_entries, SIDE, dropout)
                if limit > 0:
                    for n in range(SCORES):
                        # ds needs p, and whether dropout took it out. As p ≥ 0, its sign can tell that.
                        s[n] = s[n] if da[n] > 0 else -s[n]
                for m in range(ROWS):
                    put(tile, weights, da, m)
                clear(da, SCORES)
                cuda.syncthreads()  # dout and weights are there
                mix_turned(tile, Z + out_column, X + d, dv_sums)
                dots(tile, X + i * WIDE, V + j * WIDE, da)
                cuda.syncthreads()  # everyone has read them

                bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                if limit > 0:
                    for n in range(SCORES):
                        da[n], s[n] = float32(0) if s[n] < 0 else da[n], abs(s[n])
                for m in range(ROWS):
                    delta = saved.delta[row + m * SIDE * H] if t0 + i + m * SIDE < T else float32(0)
                    for c in range(EACH):
                        gradient = s[m * EACH + c] * (da[m * EACH + c] * to_weight - delta)
                        biased[c] += gradient
                        s[m * EACH + c] = gradient
                    put(tile, weights, s, m)
                row += QUERIES * H
                near, entry = int32(near + QUERIES // SIDE * climb), count_on(entry, QUERIES // SIDE * row_entries)
                cuda.syncthreads()  # queries and gradients are there
                mix_turned(tile, Z + out_column, X + d, dk_sums)
                cuda.syncthreads()  # everyone has read them before the next tile is brought

        if relative:
            share = i % SIDE + i // (ROWS * SIDE) * SIDE
            for c in range(EACH):
                store1(tile, Z + j * SHARES + share + c * SIDE * SHARES, biased[c])
            cuda.syncthreads()  # all threads' sums of ds are there
        to_key *= factor
        to_weight *= factor
        for n in range(OUT_KEYS):
            key = key_in(out_column + n)
            if first + key < keys.count and d < W:
                at = slot * keys.slot + h * keys.head + (first + key) * keys.row + d
                x0, x1, x2, x3 = dv_sums[4 * n], dv_sums[4 * n + 1], dv_sums[4 * n + 2], dv_sums[4 * n + 3]
                store4(dv, at, x0 * to_weight, x1 * to_weight, x2 * to_weight, x3 * to_weight)
                x0, x1, x2, x3 = dk_sums[4 * n], dk_sums[4 * n + 1], dk_sums[4 * n + 2], dk_sums[4 * n + 3]
                if relative:
                    total = share_sum(tile, Z + key * SHARES, SHARES)
                    bias = h * W + d
                    x0, x1 = x0 + total * u[bias], x1 + total * u[bias + 1]
                    x2, x3 = x2 + total * u[bias + 2], x3 + total * u[bias + 3]
                store4(dk, at, x0 * to_key, x1 * to_key, x2 * to_key, x3 * to_key)
        if relative:
            du_at = ((slot * cuda.gridDim.z + cuda.blockIdx.z) * H + h) * W
            for d in range(thread, W, THREADS):
                total = float32(0)
                for key in range(KEYS):
                    total += share_sum(tile, Z + key * SHARES, SHARES) * load1(tile, key * WIDE + d)
                du[du_at + d] = total * to_key

    keys_backward.tiles = tiles
    return keys_backward


TILES = (
    Tiles(width=16, queries=32, keys=64),
    Tiles(width=32, queries=32, keys=64),
    Tiles(width=64, queries=64, keys=32),
)
KEYS_BACKWARD = {tiles.width: make_keys_backward(tiles) for tiles in TILES}
