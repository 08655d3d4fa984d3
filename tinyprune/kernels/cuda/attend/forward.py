"""Attention forward: one kernel, and no T × S matrix in memory. See `tinyprune.ops.attention`.

A block has a tile of queries of one head of one batch entry. It goes through the head's keys tile by tile: first the
persistent ones, then those of the context that at least one of its queries sees (online softmax: Milakov & Gimelshein
2018; tiling: Dao et al. 2022).

    for each tile of keys:
        s       = scores to base 2, LOWEST where a query does not see a key
        highest = max(highest, max_j s)        and total and sums times 2^(previous highest − highest)
        p       = 2^(s − highest)
        total  += Σ_j p        sums += p ṽ        where dropout has set weights to zero
    o = sums / total / (1 − dropout)        out = o · scale · gate

It saves the log-sum-exp for backward, lse = highest + log2 total. Global memory is read once for each tile of queries
(q, k, v), and o and out are written.

Scores are q·k + q·r + (u·k + w·r). The terms in brackets depend on the key or on the distance alone. They are computed
before (`key_bias`, `distance_bias`) and stored after the rows of k and r. Keys and values take turns in one region of
shared memory; so do position keys, 32 columns at a time, and weights.

Threads that share a query's scores exchange their maxima through shared memory for every tile, their totals at the end.
"""

import math
from collections.abc import Callable

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SCALES, SIZES, source
from tinyprune.kernels.cuda.attend.sums import make_masks, make_mix, make_put, make_scores, share_sum, write
from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import aligned, exp2, larger, load1, own_thread, store1
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def shared(tiles: Tiles) -> tuple[int, int, int, int, int]:
    """Return where operands begin in shared memory, and its size; queries are the first.

    Keys, then values follow; position keys, then weights; the maxima of threads, in the end their totals; and by how
    much the sums of a query shrink.
    """
    n = lengths(tiles)
    y = tiles.queries * n.wide
    z = y + tiles.keys * n.wide
    found = z + max(n.slides * n.narrow, tiles.queries * n.weights)
    shrink = found + tiles.queries * (tiles.keys // n.each)
    return y, z, found, shrink, shrink + tiles.queries


def make_softmax(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make the functions that turn a tile's scores into weights; between them all threads wait."""
    SIDE, EACH, SHRINK = tiles.side, lengths(tiles).each, shared(tiles)[3]
    SHARES = tiles.keys // EACH  # threads that share a query's scores

    @device
    def put_maxima(tile, found, share, s):
        """Store the largest score of each of the thread's queries."""
        for m in range(ROWS):
            best = LOWEST
            for c in range(EACH):
                best = larger(best, s[m * EACH + c])
            store1(tile, found + m * SIDE * SHARES + share, best)

    @device
    def weigh(tile, found, share, i, weight, highest, total, s):
        """Set s to 2^(s − highest) · weight, and update the queries' maxima and the thread's totals.

        Maxima ignore NaN, which the weights show.
        """
        for m in range(ROWS):
            best = highest[m]
            for c in range(SHARES):
                best = larger(best, load1(tile, found + m * SIDE * SHARES + c))
            shrink = exp2(highest[m] - best)
            highest[m] = best
            total[m] *= shrink
            if share == 0:
                store1(tile, SHRINK + i + m * SIDE, shrink)
            for c in range(EACH):
                p = exp2(s[m * EACH + c] - best)
                total[m] += p
                s[m * EACH + c] = p * weight

    return put_maxima, weigh


def make_forward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes."""
    score_place, out_place, _, _ = make_places(tiles)
    bring, bring_beside = make_loads(tiles)
    _, _, scores = make_scores(tiles, bring)
    (hide, drop), (mix, _), put = make_masks(tiles), make_mix(tiles), make_put(tiles)
    put_maxima, weigh = make_softmax(tiles)
    D, QUERIES, KEYS, _, SIDE = tiles
    n, (Y, Z, FOUND, SHRINK, SIZE), SHARES = lengths(tiles), shared(tiles), tiles.keys // lengths(tiles).each
    THREADS, EACH, SCORES, OUT_QUERIES, SUMS = n.threads, n.each, n.scores, n.out_queries, 4 * n.out_queries
    WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, SOME = n.wide, n.narrow, n.weights, n.columns, n.slides, n.some
    types = (INPUTS, *3 * (floats,), SIZES, SCALES, SCALES, float32, int32, int32, DROPOUT)

    @kernel(*types, name=f"attend_{D}", threads=THREADS, hot=True, resident=n.resident, tiles=tiles)
    def attend(x, out, o, lse, sizes, context, persistent, scale, relative, gated, dropout):
        """Compute out and o (B, T, H, W), lse (B, T, H): a block for a tile of queries, grid (B, H, tiles).

        context, persistent: `Scales` of their keys.   relative, gated: whether there are r and gates.
        """
        T, S, H, N, W, span = sizes
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        highest = cuda.local.array(ROWS, float32)
        total = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * QUERIES)
        i, j, column = score_place(own_thread(THREADS))
        out_i, d = out_place(own_thread(THREADS))
        share = j % SIDE + j // (EACH * SIDE) * SIDE  # index of this thread among those of a query
        found, weights, z = FOUND + i * SHARES, Z + i * WEIGHTS + column, Z + (i - j + KEYS - 1) * NARROW
        step, M = int32(H * W), S - T
        q_at = b * T * step + h * W
        for n in range(ROWS):
            highest[n], total[n] = LOWEST, float32(0)
        clear(sums, SUMS)
        bring(x.q, q_at, step, t0, T, 0, W, tile, 0, QUERIES, D)

        # the context's keys that these queries see
        low, end = int32(max(0, t0 + M - span)), int32(min(t0 + QUERIES, T) + M)
        persistent_tiles = int32((N + KEYS - 1) // KEYS)
        # number of the dropout entry of the thread's first query and key, and from one of its queries to the next
        entry_0, row_entries = ((b * H + h) * T + t0 + i) * (S + N) + j, SIDE * (S + N)
        first, entry = int32(0), count_on(entry_0, S)
        for n in range(int32(persistent_tiles + (end - low + KEYS - 1) // KEYS)):
            if n == persistent_tiles:
                first, entry = low, count_on(entry_0, low)
            own = t0 + M - first  # the first query's own key is this one of the tile
            keys, values, at, row, rows, near, climb, reach, sliding, scales = source(
                n < persistent_tiles, x, sizes, own, first, i, j, SIDE, relative, context, persistent
            )
            bring(keys, at, row, first, rows, 0, W, tile, Y, KEYS, D)
            if sliding:
                bring_beside(x.key_bias, b * S * H + h, H, first, S, tile, Y, KEYS, D)
                bring_beside(x.distance_bias, h, H, own - KEYS + 1, S, tile, Z, SLIDES, COLUMNS)
            distance = own - KEYS + 1
            scores(tile, i * WIDE, Y + j * WIDE, z, Z, x.r, h * W, step, distance, S, W, sliding, some, s)

            for m in range(SCORES):
                s[m] *= scales.score
            hide(s, near, climb, reach)
            put_maxima(tile, found, share, s)
            cuda.syncthreads()  # all maxima are there, and all threads have read keys and position keys
            weigh(tile, found, share, i, scales.weight, highest, total, s)
            drop(s, entry, row_entries, SIDE, dropout)
            for m in range(ROWS):
                put(tile, weights, s, m)
            bring(values, at, row, first, rows, 0, W, tile, Y, KEYS, D)
            first, entry = int32(first + KEYS), count_on(entry, KEYS)
            cuda.syncthreads()  # weights and values are there
            for m in range(OUT_QUERIES):
                shrink = load1(tile, SHRINK + out_i + m * SIDE)
                for c in range(4):
                    sums[4 * m + c] *= shrink
            mix(tile, Z + out_i * WEIGHTS, Y + d, sums)
            cuda.syncthreads()  # all threads have read them before the next keys are brought

        for m in range(ROWS):
            store1(tile, found + m * SIDE * SHARES + share, total[m])
        cuda.syncthreads()  # all threads' totals are there
        factor = scale
        if gated:
            factor *= x.gate[h]
        for m in range(OUT_QUERIES):
            query = out_i + m * SIDE
            if t0 + query < T and d < W:
                weight = dropout.factor / share_sum(tile, FOUND + query * SHARES, SHARES)
                at = q_at + (t0 + query) * step + d
                for c in range(4):
                    sums[4 * m + c] *= weight
                write(o, at, sums, m, float32(1))
                write(out, at, sums, m, factor)
        for m in range(ROWS):
            query = i + m * SIDE
            if share == 0 and t0 + query < T:
                row_total = share_sum(tile, FOUND + query * SHARES, SHARES)
                lse[(b * T + t0 + query) * H + h] = highest[m] + math.log2(row_total)

    return attend


FORWARD = {D: make_forward(Tiles(width=D, queries=64, keys=32)) for D in (16, 32, 64)}
