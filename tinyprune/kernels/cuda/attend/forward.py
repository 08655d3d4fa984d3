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

It saves the log-sum-exp for backward, lse = highest + log2 total. A block reads q once from global memory, and each key
and value that its queries see once; it writes o and out.

Scores are q·k + q·r + (u·k + w·r). The terms in brackets depend on the key or on the distance alone. They are computed
before, as `key_bias` and `distance_bias`, and are loaded to the places after the rows of k and r.

PEERS threads share a query's scores, and exchange maxima in shared memory for every tile of keys, totals at the end.
"""

import math
from collections.abc import Callable

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SCALES, SIZES, key_tile
from tinyprune.kernels.cuda.attend.sums import add32, drop, hide, make_mix, make_scores, store_row, sum_of, write
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Tiles, clear, layout, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, exp2, larger, load1, store1, thread_index
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def shared(tiles: Tiles) -> tuple[int, int, int, int, int]:
    """Return where operands begin in shared memory, and its size:

    0          queries
    Y          keys, then values
    Z          position keys, some columns at a time, then weights p
    PARTIAL    maxima (query, peer), at the end totals
    SHRINK     2^(previous highest − highest) of each query
    """
    n = layout(tiles)
    y = tiles.queries * n.x_stride
    z = y + tiles.keys * n.x_stride
    partial = z + max(n.z_rows * n.z_stride, tiles.queries * n.p_stride)
    shrink = partial + tiles.queries * (tiles.keys // COLUMNS)
    return y, z, partial, shrink, shrink + tiles.queries


def make_softmax(tiles: Tiles) -> tuple[Callable, Callable]:
    """Make the functions that turn a tile's scores into weights; between them all threads wait.

    partial: where numbers of the thread's first query begin.   peer: index of the thread among those of a query.
    """
    SIDE, PEERS, SHRINK = tiles.side, tiles.keys // COLUMNS, shared(tiles)[3]

    @device
    def store_maxima(smem, partial, peer, s):
        """Store the largest score of each of the thread's queries."""
        for m in range(ROWS):
            best = LOWEST
            for c in range(COLUMNS):
                best = larger(best, s[m * COLUMNS + c])
            store1(smem, partial + m * SIDE * PEERS + peer, best)

    @device
    def weigh(smem, partial, peer, i, weight, highest, total, s):
        """Set s to 2^(s − highest) · weight, and update the queries' maxima and the thread's totals.

        A NaN does not change a maximum, but its weight is NaN, and so are the total and out.
        """
        for m in range(ROWS):
            best = highest[m]
            for c in range(PEERS):
                best = larger(best, load1(smem, partial + m * SIDE * PEERS + c))
            shrink = exp2(highest[m] - best)
            highest[m] = best
            total[m] *= shrink
            if peer == 0:
                store1(smem, SHRINK + i + m * SIDE, shrink)
            for c in range(COLUMNS):
                p = exp2(s[m * COLUMNS + c] - best)
                total[m] += p
                s[m * COLUMNS + c] = p * weight

    return store_maxima, weigh


def make_forward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes."""
    first_score, first_out, _, _ = make_places(tiles)
    load_rows, load_biases = make_loads(tiles)
    _, _, scores = make_scores(tiles, load_rows)
    (mix, _, _), (store_maxima, weigh) = make_mix(tiles), make_softmax(tiles)
    D, QUERIES, KEYS, _, SIDE = tiles
    THREADS, RESIDENT, SCORES, OUT_QUERIES, _, X_STRIDE, Z_STRIDE, P_STRIDE, Z_COLUMNS, Z_ROWS, Z_REGS = layout(tiles)
    (Y, Z, PARTIAL, SHRINK, SIZE), PEERS, SUMS = shared(tiles), KEYS // COLUMNS, 4 * OUT_QUERIES
    types = (INPUTS, *3 * (floats,), SIZES, SCALES, SCALES, float32, int32, int32, DROPOUT)

    @kernel(*types, name=f"attend_{D}", threads=THREADS, resident=RESIDENT, tiles=tiles)
    def attend(g, out, o, lse, sizes, context, persistent, scale, relative, gated, dropout):
        """Compute out and o (B, T, H, W), lse (H, B, T): a block for a tile of queries, grid (B, H, tiles).

        g: `Inputs`.   context, persistent: `Scales` of their keys.   relative, gated: whether there are r and gates.
        """
        T, S, H, N, W, span = sizes
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        highest = cuda.local.array(ROWS, float32)
        total = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * QUERIES)
        i, j, column = first_score(thread_index(THREADS))
        out_i, d = first_out(thread_index(THREADS))
        peer = j % SIDE + j // (COLUMNS * SIDE) * SIDE  # number of this thread among those that share query i
        partial, p, z = PARTIAL + i * PEERS, Z + i * P_STRIDE + column, Z + (i - j + KEYS - 1) * Z_STRIDE
        step, M = int32(H * W), S - T  # entries from one position to the next; keys before the first query's
        q_at = b * T * step + h * W
        for n in range(ROWS):
            highest[n], total[n] = LOWEST, float32(0)
        clear(sums, SUMS)
        load_rows(g.q, q_at, step, t0, T, 0, W, smem, 0, QUERIES, D)

        # `low` to `end`: keys of the context that these queries see
        low, end = int32(max(0, t0 + M - span)), int32(min(t0 + QUERIES, T) + M)
        persistent_tiles = int32((N + KEYS - 1) // KEYS)
        # dropout numbers a query's scores, those of the context first; entry_0: of the thread's first query and key j
        entry_0, row_entries = ((b * H + h) * T + t0 + i) * (S + N) + j, SIDE * (S + N)
        first, entry = int32(0), add32(entry_0, S)
        for n in range(int32(persistent_tiles + (end - low + KEYS - 1) // KEYS)):
            if n == persistent_tiles:
                first, entry = low, add32(entry_0, low)
            own = t0 + M - first  # index in the tile of the key at the first query's position
            tile = key_tile(n < persistent_tiles, g, sizes, own, first, i, j, SIDE, relative, context, persistent)
            load_rows(tile.keys, tile.begin, tile.stride, first, tile.count, 0, W, smem, Y, KEYS, D)
            if tile.sliding:
                load_biases(g.key_bias, (h * cuda.gridDim.x + b) * S, first, S, smem, Y, KEYS, D)
                load_biases(g.distance_bias, h * S, own - KEYS + 1, S, smem, Z, Z_ROWS, Z_COLUMNS)
            nearest = own - KEYS + 1  # distance of the first row of z
            scores(smem, i * X_STRIDE, Y + j * X_STRIDE, z, Z, g.r, h * W, step, nearest, S, W, tile.sliding, z_regs, s)

            for m in range(SCORES):
                s[m] *= tile.scales.score
            hide(s, tile.last, tile.rise, tile.span, SIDE)
            store_maxima(smem, partial, peer, s)
            cuda.syncthreads()  # maxima are there; all threads have read keys and position keys, which others replace
            weigh(smem, partial, peer, i, tile.scales.weight, highest, total, s)
            drop(s, entry, row_entries, SIDE, dropout)
            for m in range(ROWS):
                store_row(smem, p + m * SIDE * P_STRIDE, s, m)
            load_rows(tile.values, tile.begin, tile.stride, first, tile.count, 0, W, smem, Y, KEYS, D)
            first, entry = int32(first + KEYS), add32(entry, KEYS)
            cuda.syncthreads()  # weights and values are there
            for m in range(OUT_QUERIES):
                shrink = load1(smem, SHRINK + out_i + m * SIDE)
                for c in range(4):
                    sums[4 * m + c] *= shrink
            mix(smem, Z + out_i * P_STRIDE, Y + d, sums)
            cuda.syncthreads()  # all threads have read them before the next keys are loaded

        for m in range(ROWS):
            store1(smem, partial + m * SIDE * PEERS + peer, total[m])
        cuda.syncthreads()  # all threads' totals are there
        factor = scale
        if gated:
            factor *= g.gate[h]
        for m in range(OUT_QUERIES):
            query = out_i + m * SIDE
            if t0 + query < T and d < W:
                weight = dropout.factor / sum_of(smem, PARTIAL + query * PEERS, PEERS)
                at = q_at + (t0 + query) * step + d
                for c in range(4):
                    sums[4 * m + c] *= weight
                write(o, at, sums, m, float32(1))
                write(out, at, sums, m, factor)
        for m in range(ROWS):
            query = i + m * SIDE
            if peer == 0 and t0 + query < T:
                row_total = sum_of(smem, PARTIAL + query * PEERS, PEERS)
                lse[(h * cuda.gridDim.x + b) * T + t0 + query] = highest[m] + math.log2(row_total)

    return attend


FORWARD = {D: make_forward(Tiles(width=D, queries=64, keys=32)) for D in (16, 32, 64)}
