"""Attention backward for queries: dq. See `attention_outputs`, whose course along the keys is this one's, too.

    for each tile of keys:
        da = do ṽ        p = 2^(s − lse), the weights made anew
        ds = p · (da · keep / (1 − dropout) − delta)            delta_i = Σ_d do · o
        dq += ds (k + r)

All is linear in do, so that dout stands for it, and the gate, which makes do of dout, waits until the end; a head whose
gate is 0 has nothing to do. dq for a whole tile of queries stays in registers; each is written once.
"""

from __future__ import annotations

import math

from tinyprune.kernels.cuda.attention_tiles import LOWEST, ROWS, Tiles, clear, count_on, kept, make_tiles
from tinyprune.kernels.cuda.jit import Kernel, cuda, float32, floats, int32, kernel, uint32
from tinyprune.kernels.cuda.vectors import aligned, store4


def make_queries_backward(tiles: Tiles) -> Kernel:
    """The kernel for these sizes; all columns of position keys are in shared memory, for they are used twice."""
    t = make_tiles(tiles._replace(columns=tiles.width))
    D, QUERIES, KEYS, SIDE, SLIDES = t.D, t.QUERIES, t.KEYS, t.SIDE, t.SLIDES
    THREADS, EACH, SCORES, OUT_QUERIES, SOME = t.THREADS, t.EACH, t.SCORES, t.OUT_QUERIES, t.SOME
    WIDE, WEIGHTS = t.WIDE, t.WEIGHTS
    bring, bring_beside, score_place, out_place = t.bring, t.bring_beside, t.score_place, t.out_place
    dots, sliding_dots, add_beside, put, mix, sliding_mix = (
        t.dots, t.sliding_dots, t.add_beside, t.put, t.mix, t.sliding_mix,
    )  # fmt: skip
    SUMS = 4 * OUT_QUERIES
    RESIDENT = 4  # blocks of a multiprocessor: their threads have 128 registers each
    # shared memory: queries; dout; values, then keys; gradients of scores; position keys
    X = QUERIES * WIDE
    Y = 2 * QUERIES * WIDE
    P = Y + KEYS * WIDE
    Z = P + QUERIES * WEIGHTS
    SIZE = Z + SLIDES * WIDE

    types = (*13 * (floats,), *6 * (int32,), *5 * (float32,), *2 * (int32,), *3 * (uint32,))

    @kernel(*types, threads=THREADS, hot=True, resident=RESIDENT)
    def queries_backward(
        q, k, v, r, pk, pv, key_bias, distance_bias, gate, dout, lse, delta, dq, T, S, H, N, W, span, to_score,
        to_persistent_score, to_key, to_weight, to_persistent_weight, relative, gated, key0, key1, limit,
    ):  # fmt: skip
        """dq (B, T, H, W): a block for a tile of queries, grid (B, H, tiles).

        to_score, to_key: log2 e / √Dh and 1 / √Dh.   to_weight: scale / (1 − dropout), and for pv times √N.
        delta: (B, T, H), times scale, but not the gate.   The rest as in `attention_outputs`.
        """
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        level = cuda.local.array(ROWS, float32)
        change = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z * QUERIES
        i, j, column = score_place(cuda.threadIdx.x)
        out_i, d = out_place(cuda.threadIdx.x)
        weights, z = P + i * WEIGHTS + column, Z + (i - j + KEYS - 1) * WIDE
        step, M = H * W, S - T
        q_at, k_at = b * T * step + h * W, b * S * step + h * W
        for m in range(ROWS):
            query = t0 + i + m * SIDE
            at = (b * T + query) * H + h
            level[m] = lse[at] if query < T else -LOWEST
            change[m] = delta[at] if query < T else float32(0)
        clear(sums, SUMS)
        bring(q, q_at, step, t0, T, 0, W, tile, 0, QUERIES, D)
        bring(dout, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
        factor = gate[h] if gated else float32(1)

        low, end = max(0, t0 + M - span), min(t0 + QUERIES, T) + M
        persistent = (N + KEYS - 1) // KEYS
        rounds = persistent + (end - low + KEYS - 1) // KEYS
        if factor == 0:
            rounds = 0
        entry_0, row_entries = ((b * H + h) * T + t0 + i) * (S + N) + j, SIDE * (S + N)
        first, entry = 0, count_on(entry_0, S)
        for n in range(rounds):
            if n == persistent:
                first, entry = low, count_on(entry_0, low)
            own = t0 + M - first
            if n < persistent:
                sliding = False
                keys, values, at, row, rows = pk, pv, h * N * W, W, N
                near, climb, reach = int32(N - 1 - first - j), 0, N
                score_factor, weight_factor, key_factor = to_persistent_score, to_persistent_weight, float32(1)
            else:
                sliding = relative != 0
                keys, values, at, row, rows = k, v, k_at, step, S
                near, climb, reach = int32(own + i - j), SIDE, span
                score_factor, weight_factor, key_factor = to_score, to_weight, to_key
            bring(values, at, row, first, rows, 0, W, tile, Y, KEYS, D)
            clear(s, SCORES)
            clear(da, SCORES)
            cuda.syncthreads()  # values are there, and dout
            dots(tile, X + i * WIDE, Y + j * WIDE, da)
            cuda.syncthreads()  # everyone has read the values before keys take their place
            bring(keys, at, row, first, rows, 0, W, tile, Y, KEYS, D)
            if sliding:
                bring_beside(key_bias, b * S * H + h, H, first, S, tile, Y, KEYS, D)
                bring(r, h * W, step, own - KEYS + 1, S, 0, W, tile, Z, SLIDES, D)
                bring_beside(distance_bias, h, H, own - KEYS + 1, S, tile, Z, SLIDES, D)
            cuda.syncthreads()  # keys and position keys are there
            dots(tile, i * WIDE, Y + j * WIDE, s)
            if sliding:
                sliding_dots(tile, i * WIDE, z, some, s)
                add_beside(tile, Y + j * WIDE, z, s)
            for m in range(ROWS):
                last, number = int32(near + m * climb), count_on(entry, m * row_entries)
                for c in range(EACH):
                    score = s[m * EACH + c] * score_factor if last - reach <= c * SIDE <= last else LOWEST
                    gradient = da[m * EACH + c] * weight_factor
                    if limit > 0 and not kept(count_on(number, c * SIDE), key0, key1, limit):
                        gradient = float32(0)
                    s[m * EACH + c] = math.exp2(score - level[m]) * (gradient - change[m]) * key_factor
                put(tile, weights, s, m)
            first, entry = first + KEYS, count_on(entry, KEYS)
            cuda.syncthreads()  # the gradients are there
            mix(tile, P + out_i * WEIGHTS, Y + d, sums)
            if sliding:
                sliding_mix(tile, P + out_i * WEIGHTS, Z + (out_i + KEYS - 1) * WIDE + d, some, sums)
            cuda.syncthreads()  # everyone has read all of it before the next tile comes
        for m in range(OUT_QUERIES):
            query = t0 + out_i + m * SIDE
            if query < T and d < W:
                x0, x1, x2, x3 = sums[4 * m], sums[4 * m + 1], sums[4 * m + 2], sums[4 * m + 3]
                store4(dq, q_at + query * step + d, x0 * factor, x1 * factor, x2 * factor, x3 * factor)

    queries_backward.tiles = tiles
    return queries_backward


# with 64 queries of width 64 and their dout there would be no room for keys
TILES = (
    Tiles(width=16, queries=64, keys=32),
    Tiles(width=32, queries=64, keys=32),
    Tiles(width=64, queries=32, keys=32),
)
QUERIES_BACKWARD = {tiles.width: make_queries_backward(tiles) for tiles in TILES}
