"""Attention backward for position keys: dr and dw. It mirrors `keys`: distances stay and keys slide.

    distance of query i and key j = i + M − j,        so key of query i at distance c = i + M − c

A block has a tile of position keys, and goes through all queries of a group of batch entries:

    for each tile of queries:
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta), by query and distance
        dr += dsᵀ (q + w)

Each group has its own slot of dr, and of dw one for each tile.
"""

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SAVED, SCALES, SIZES
from tinyprune.kernels.cuda.attend.keys import TILES, make_gradients, shared
from tinyprune.kernels.cuda.attend.sums import make_biases, make_masks, make_mix_turned, make_put, make_scores, write
from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import aligned, own_thread
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def make_distances_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes, whose `keys` are distances."""
    score_place, _, key_place, key_in = make_places(tiles)
    bring, bring_beside = make_loads(tiles)
    _, sliding_dots, scores = make_scores(tiles, bring)
    (_, drop), mix_turned = make_masks(tiles), make_mix_turned(tiles)
    to_weights, put_gradients, _, _ = make_gradients(tiles, drop, make_put(tiles))
    D, QUERIES, DISTANCES, _, SIDE = tiles
    n, (_, X, Z, SIZE) = lengths(tiles), shared(tiles, has_values=False)
    THREADS, EACH, SCORES, OUT_DISTANCES, SUMS = n.threads, n.each, n.scores, n.out_keys, 4 * n.out_keys
    WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, SOME = n.wide, n.narrow, n.weights, n.columns, n.slides, n.some
    put_shares, add_bias, put_bias_gradient = make_biases(tiles, Z)
    types = (INPUTS, SAVED, *3 * (floats,), int32, SIZES, int32, SCALES, int32, DROPOUT)

    @kernel(*types, name=f"distances_backward_{D}", threads=THREADS, hot=True, resident=n.resident, tiles=tiles)
    def distances_backward(x, saved, w, dr, dw, B, sizes, group, scales, gated, dropout):
        """Compute dr (slots, S, H, W) and dw (slots, tiles, H, W): a block for a tile, grid (slots, H, tiles).

        group: batch entries that are summed in a slot.
        """
        T, S, H, N, W, span = sizes
        to_score, to_weight, to_key = scales
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        biased = cuda.local.array(EACH, float32)
        sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z * DISTANCES
        i, j, column = score_place(own_thread(THREADS))
        out_column, d = key_place(own_thread(THREADS))
        weights, z = Z + i * WEIGHTS + column, Z + (i - j + DISTANCES - 1) * NARROW
        step, M = int32(H * W), S - T
        bring(x.r, h * W, step, first, S, 0, W, tile, 0, DISTANCES, D)
        bring_beside(x.distance_bias, h, H, first, S, tile, 0, DISTANCES, D)
        clear(sums, SUMS)
        clear(biased, EACH)
        factor = x.gate[h] if gated else float32(1)

        # The thread's row m has a key at distance c if c · SIDE ≤ near + m · SIDE, and sees it if c · SIDE ≤ reach.
        begin, end = max(0, first - M), T
        if factor == 0 or first > span:
            end = begin
        reach, row_entries = int32(span - first - j), SIDE * (S + N + 1)
        for b in range(slot * group, min(B, (slot + 1) * group)):
            q_at, k_at = b * T * step + h * W, b * S * step + h * W
            row = (b * T + begin + i) * H + h
            near = int32(begin + M - first + i - j)
            entry = count_on(near, ((b * H + h) * T + begin + i) * (S + N))
            for t0 in range(begin, end, QUERIES):
                key = t0 + M - first - DISTANCES + 1  # of the first row that slides
                bring(saved.dout, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                clear(da, SCORES)
                for d0 in range(0, D, COLUMNS):
                    if d0 > 0:
                        cuda.syncthreads()  # all threads have read the columns before
                    bring(x.v, k_at, step, key, S, d0, W, tile, Z, SLIDES, COLUMNS)
                    cuda.syncthreads()  # dout and columns of values are there
                    sliding_dots(tile, X + i * WIDE + d0, z, some, da)
                cuda.syncthreads()  # all threads have read them

                bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
                bring_beside(x.key_bias, b * S * H + h, H, key, S, tile, Z, SLIDES, COLUMNS)
                scores(tile, X + i * WIDE, j * WIDE, z, Z, x.k, k_at, step, key, S, W, True, some, s)
                cuda.syncthreads()  # all threads have read keys before gradients replace them

                if min(near, reach) < (EACH - 1) * SIDE:  # as `hide`
                    for m in range(ROWS):
                        last = int32(min(near + m * SIDE, reach))
                        for c in range(EACH):
                            if c * SIDE > last:
                                s[m * EACH + c] = LOWEST
                drop(da, entry, row_entries, -SIDE, dropout)
                to_weights(saved, row, H, T - t0 - i, to_score, s)
                put_gradients(tile, weights, saved, row, H, T - t0 - i, to_weight, s, da, biased)
                row += QUERIES * H
                near, entry = int32(near + QUERIES), count_on(entry, QUERIES // SIDE * row_entries)
                cuda.syncthreads()  # the gradients are there
                mix_turned(tile, Z + out_column, X + d, sums)
                cuda.syncthreads()  # all threads have read them before the next tile is brought

        put_shares(tile, i, j, biased)
        cuda.syncthreads()  # all threads' sums of ds are there
        to_key *= factor
        for n in range(OUT_DISTANCES):
            distance = key_in(out_column + n)
            if first + distance < S and d < W:
                add_bias(tile, distance, w, h * W + d, sums, n)
                write(dr, ((slot * S + first + distance) * H + h) * W + d, sums, n, to_key)
        put_bias_gradient(tile, W, dw, ((slot * cuda.gridDim.z + cuda.blockIdx.z) * H + h) * W, to_key)

    return distances_backward


DISTANCES_BACKWARD = {tiles.width: make_distances_backward(tiles) for tiles in TILES}
