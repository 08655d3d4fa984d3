"""Attention backward for keys and values: dk and dv, and the same for persistent ones. See `attention_queries`.

A block takes a tile of keys with their values, and runs along the queries that see them:

    for each tile of queries:
        p   = 2^(s − lse)                          dv += (p · keep)ᵀ do
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta)      dk += dsᵀ (q + u)

Context keys belong to one batch entry. Persistent ones serve the whole batch: a block takes a group of its entries, and
writes to the group's own slot; the slots are summed afterwards, in order. How many there are depends on the shapes
alone, so that no bit of the result depends on which block comes first.

The sums of ds over all queries stay in registers, too, for u: dk gets them times u, and du is what they make with k.
Queries and dout take turns in the same shared memory; so do position keys, weights, and the gradients of scores.
"""

from __future__ import annotations

import math

from tinyprune.kernels.cuda.attention_tiles import LOWEST, ROWS, Tiles, clear, count_on, kept, make_tiles
from tinyprune.kernels.cuda.jit import Kernel, cuda, device, float32, floats, int32, kernel, uint32
from tinyprune.kernels.cuda.vectors import aligned, load1, store1, store4


def make_keys_backward(tiles: Tiles) -> Kernel:
    """The kernel for these sizes."""
    t = make_tiles(tiles)
    D, QUERIES, KEYS, SIDE, COLUMNS, SLIDES = t.D, t.QUERIES, t.KEYS, t.SIDE, t.COLUMNS, t.SLIDES
    THREADS, EACH, SCORES, OUT_KEYS, SOME = t.THREADS, t.EACH, t.SCORES, t.OUT_KEYS, t.SOME
    WIDE, NARROW, WEIGHTS = t.WIDE, t.NARROW, t.WEIGHTS
    bring, bring_beside, score_place, key_place, key_in = (
        t.bring, t.bring_beside, t.score_place, t.key_place, t.key_in,
    )  # fmt: skip
    dots, sliding_dots, add_beside, put, mix_turned = t.dots, t.sliding_dots, t.add_beside, t.put, t.mix_turned
    SUMS = 4 * OUT_KEYS
    SHARES = QUERIES // ROWS  # threads that have a part of a key's scores
    RESIDENT = 4 if D <= 32 else 3  # blocks of a multiprocessor: their threads have 128 registers each, or 168
    # shared memory: keys; values; queries or dout; position keys, then weights, then gradients of scores
    V = KEYS * WIDE
    X = 2 * KEYS * WIDE
    Z = X + QUERIES * WIDE
    SIZE = Z + max(SLIDES * NARROW, QUERIES * WEIGHTS, KEYS * SHARES)

    @device
    def row_sum(tile, key):
        """The sum over all queries of a key's ds, of which threads have parts."""
        total = float32(0)
        for c in range(SHARES):
            total += load1(tile, Z + key * SHARES + c)
        return total

    types = (*14 * (floats,), *12 * (int32,), *3 * (float32,), *3 * (int32,), *3 * (uint32,))

    @kernel(*types, threads=THREADS, hot=True, resident=RESIDENT)
    def keys_backward(
        q, k, v, r, u, key_bias, distance_bias, gate, dout, lse, delta, dk, dv, du, B, T, S, H, N, W, span, keys,
        k_slot, k_head, k_row, group, to_score, to_key, to_weight, context, relative, gated, key0, key1, limit,
    ):  # fmt: skip
        """dk and dv of k and v: a block for a tile of keys, grid (slots, H, tiles). du: (slots, tiles, H, W).

        k, v: keys and values of the context, or persistent ones; there are so many `keys`.
        k_slot, k_head, k_row: from one slot of dk to the next, from one head, from one key.
        group: batch entries of a slot; for context keys 1.
        """
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        biased = cuda.local.array(EACH, float32)
        dk_sums = cuda.local.array(SUMS, float32)
        dv_sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z * KEYS
        thread = cuda.threadIdx.x
        i, j, column = score_place(thread)
        out_column, d = key_place(thread)
        weights, z = Z + i * WEIGHTS + column, Z + (i - j + KEYS - 1) * NARROW
        step, M = H * W, S - T
        k_at = h * k_head + (slot * k_slot if context else 0)
        bring(k, k_at, k_row, first, keys, 0, W, tile, 0, KEYS, D)
        bring(v, k_at, k_row, first, keys, 0, W, tile, V, KEYS, D)
        if relative:
            bring_beside(key_bias, slot * S * H + h, H, first, S, tile, 0, KEYS, D)
        clear(dk_sums, SUMS)
        clear(dv_sums, SUMS)
        clear(biased, EACH)
        factor = gate[h] if gated else float32(1)

        # Which queries see these keys. As in `attention_outputs`, the thread's row m sees its keys c with
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
        for b in range(slot * group, min(B, (slot + 1) * group)):
            q_at = b * T * step + h * W
            row = (b * T + begin + i) * H + h
            near, entry = int32(near_0), count_on(entry_0, ((b * H + h) * T + begin + i) * (S + N))
            for t0 in range(begin, end, QUERIES):
                distance = t0 + M - first - KEYS + 1  # of the first row that slides
                bring(q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                if relative:
                    bring_beside(distance_bias, h, H, distance, S, tile, Z, SLIDES, COLUMNS)
                clear(s, SCORES)
                for d0 in range(0, D if relative else COLUMNS, COLUMNS):
                    if d0 > 0:
                        cuda.syncthreads()  # everyone has read the columns before
                    if relative:
                        bring(r, h * W, step, distance, S, d0, W, tile, Z, SLIDES, COLUMNS)
                    cuda.syncthreads()  # queries and columns are there
                    if d0 == 0:
                        dots(tile, X + i * WIDE, j * WIDE, s)
                    if relative:
                        sliding_dots(tile, X + i * WIDE + d0, z, some, s)
                if relative:
                    add_beside(tile, j * WIDE, z, s)
                cuda.syncthreads()  # everyone has read queries and position keys

                bring(dout, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                for m in range(ROWS):
                    level = lse[row + m * SIDE * H] if t0 + i + m * SIDE < T else -LOWEST
                    last, number = int32(near + m * climb), count_on(entry, m * row_entries)
                    for c in range(EACH):
                        score = s[m * EACH + c] * to_score if last - reach <= c * SIDE <= last else LOWEST
                        p = math.exp2(score - level)
                        da[m * EACH + c] = p
                        if limit > 0 and not kept(count_on(number, c * SIDE), key0, key1, limit):
                            da[m * EACH + c] = float32(0)
                            p = -p  # until it is used again: so it is known that it was taken out
                        s[m * EACH + c] = p
                    put(tile, weights, da, m)
                clear(da, SCORES)
                cuda.syncthreads()  # dout and weights are there
                mix_turned(tile, Z + out_column, X + d, dv_sums)
                dots(tile, X + i * WIDE, V + j * WIDE, da)
                cuda.syncthreads()  # everyone has read them

                bring(q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                for m in range(ROWS):
                    change = delta[row + m * SIDE * H] if t0 + i + m * SIDE < T else float32(0)
                    for c in range(EACH):
                        p, gradient = s[m * EACH + c], da[m * EACH + c] * to_weight
                        if p < 0:
                            p, gradient = -p, float32(0)
                        gradient = p * (gradient - change)
                        biased[c] += gradient
                        s[m * EACH + c] = gradient
                    put(tile, weights, s, m)
                row += QUERIES * H
                near, entry = int32(near + QUERIES // SIDE * climb), count_on(entry, QUERIES // SIDE * row_entries)
                cuda.syncthreads()  # queries and gradients are there
                mix_turned(tile, Z + out_column, X + d, dk_sums)
                cuda.syncthreads()  # everyone has read them before the next tile comes

        if relative:
            share = i % SIDE + i // (ROWS * SIDE) * SIDE
            for c in range(EACH):
                store1(tile, Z + j * SHARES + share + c * SIDE * SHARES, biased[c])
            cuda.syncthreads()  # everyone's part of the sums of ds is there
        to_key *= factor
        to_weight *= factor
        for n in range(OUT_KEYS):
            key = key_in(out_column + n)
            if first + key < keys and d < W:
                at = slot * k_slot + h * k_head + (first + key) * k_row + d
                x0, x1, x2, x3 = dv_sums[4 * n], dv_sums[4 * n + 1], dv_sums[4 * n + 2], dv_sums[4 * n + 3]
                store4(dv, at, x0 * to_weight, x1 * to_weight, x2 * to_weight, x3 * to_weight)
                x0, x1, x2, x3 = dk_sums[4 * n], dk_sums[4 * n + 1], dk_sums[4 * n + 2], dk_sums[4 * n + 3]
                if relative:
                    total = row_sum(tile, key)
                    bias = h * W + d
                    x0, x1 = x0 + total * u[bias], x1 + total * u[bias + 1]
                    x2, x3 = x2 + total * u[bias + 2], x3 + total * u[bias + 3]
                store4(dk, at, x0 * to_key, x1 * to_key, x2 * to_key, x3 * to_key)
        if relative:
            du_at = ((slot * cuda.gridDim.z + cuda.blockIdx.z) * H + h) * W
            for d in range(thread, W, THREADS):
                change = float32(0)
                for key in range(KEYS):
                    change += row_sum(tile, key) * load1(tile, key * WIDE + d)
                du[du_at + d] = change * to_key

    keys_backward.tiles = tiles
    return keys_backward


TILES = (
    Tiles(width=16, queries=32, keys=64),
    Tiles(width=32, queries=32, keys=64),
    Tiles(width=64, queries=64, keys=32),
)
KEYS_BACKWARD = {tiles.width: make_keys_backward(tiles) for tiles in TILES}
