"""Attention backward for position keys: dr and dw. It mirrors `keys`: distances stay and keys slide.

    distance of query i and key j = i + M − j,        so key of query i at distance c = i + M − c

A block has a tile of position keys, and goes through all queries of a group of batch entries:

    for each tile of queries:
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta), by query and distance
        dr += dsᵀ (q + w)

Each group writes to a slot of dr, and to a slot of dw for each tile. In the terms of `tiles`, y is the position keys
(distance j, not key j), and z first the values, then the keys.
"""

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SAVED, SCALES, SIZES
from tinyprune.kernels.cuda.attend.keys import TILES, make_gradients, shared
from tinyprune.kernels.cuda.attend.sums import add32, drop, make_biases, make_mix, make_scores, write
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Tiles, clear, layout, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, thread_index
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def make_distances_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes, whose `keys` are distances."""
    first_score, _, first_key_out, key_of = make_places(tiles)
    load_rows, load_biases = make_loads(tiles)
    (_, sliding_dots, scores), (_, _, mix_transposed) = make_scores(tiles, load_rows), make_mix(tiles)
    to_weights, store_gradients, _, _ = make_gradients(tiles)
    D, QUERIES, DISTANCES, _, SIDE = tiles
    THREADS, RESIDENT, SCORES, _, OUT_DISTANCES, X_STRIDE, Z_STRIDE, P_STRIDE, Z_COLUMNS, Z_ROWS, Z_REGS = layout(tiles)
    (_, X, Z, SIZE), SUMS = shared(tiles, has_values=False), 4 * OUT_DISTANCES
    store_partial_sums, add_bias, write_bias_gradient = make_biases(tiles, Z)
    types = (INPUTS, SAVED, *3 * (floats,), int32, SIZES, int32, SCALES, int32, DROPOUT)

    @kernel(*types, name=f"distances_backward_{D}", threads=THREADS, resident=RESIDENT, tiles=tiles)
    def distances_backward(g, saved, w, dr, dw, B, sizes, group, scales, gated, dropout):
        """Compute dr (slots, S, H, W) and dw (slots, tiles, H, W): a block for a tile, grid (slots, H, tiles).

        g, saved: `Inputs`, `Saved`.   group: batch entries that are summed in a slot.
        """
        T, S, H, N, W, span = sizes
        score_factor, weight_factor, key_factor = scales
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        ds_sums = cuda.local.array(COLUMNS, float32)
        sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z * DISTANCES
        i, j, column = first_score(thread_index(THREADS))
        out_column, d = first_key_out(thread_index(THREADS))
        p, z = Z + i * P_STRIDE + column, Z + (i - j + DISTANCES - 1) * Z_STRIDE
        step, M = int32(H * W), S - T  # entries from one position to the next; keys before the first query's
        load_rows(g.r, h * W, step, first, S, 0, W, smem, 0, DISTANCES, D)
        load_biases(g.distance_bias, h * S, first, S, smem, 0, DISTANCES, D)
        clear(sums, SUMS)
        clear(ds_sums, COLUMNS)
        factor = g.gate[h] if gated else float32(1)

        # At its distance c the thread's query m has key + (m − c) · SIDE if that is ≥ 0, and sees it if c · SIDE ≤ far.
        begin, end = max(0, first - M), T
        if factor == 0 or first > span:
            end = begin
        far, row_entries = int32(span - first - j), SIDE * (S + N + 1)  # + 1: the next query has the next key there
        for b in range(slot * group, min(B, (slot + 1) * group)):
            q_at, k_at = b * T * step + h * W, b * S * step + h * W
            saved_at = (h * B + b) * T + begin + i  # of the thread's first query
            key = int32(begin + M - first + i - j)  # at the thread's first query and distance
            entry = add32(key, ((b * H + h) * T + begin + i) * (S + N))
            for t0 in range(begin, end, QUERIES):
                key_0 = t0 + M - first - DISTANCES + 1  # in the first row of z
                load_rows(saved.dout, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
                clear(da, SCORES)
                for d0 in range(0, D, Z_COLUMNS):
                    if d0 > 0:
                        cuda.syncthreads()  # all threads have read the columns before
                    load_rows(g.v, k_at, step, key_0, S, d0, W, smem, Z, Z_ROWS, Z_COLUMNS)
                    cuda.syncthreads()  # dout and columns of values are there
                    sliding_dots(smem, X + i * X_STRIDE + d0, z, z_regs, da)
                cuda.syncthreads()  # all threads have read dout and values

                load_rows(g.q, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
                load_biases(g.key_bias, (h * B + b) * S, key_0, S, smem, Z, Z_ROWS, Z_COLUMNS)
                scores(smem, X + i * X_STRIDE, j * X_STRIDE, z, Z, g.k, k_at, step, key_0, S, W, True, z_regs, s)
                cuda.syncthreads()  # all threads have read keys before gradients replace them

                if min(key, far) < (COLUMNS - 1) * SIDE:  # as `hide`
                    for m in range(ROWS):
                        last = int32(min(key + m * SIDE, far))
                        for c in range(COLUMNS):
                            if c * SIDE > last:
                                s[m * COLUMNS + c] = LOWEST
                drop(da, entry, row_entries, -SIDE, dropout)
                to_weights(saved, saved_at, T - t0 - i, score_factor, s)
                store_gradients(smem, p, saved, saved_at, T - t0 - i, weight_factor, s, da, ds_sums)
                saved_at += QUERIES
                key, entry = int32(key + QUERIES), add32(entry, QUERIES // SIDE * row_entries)
                cuda.syncthreads()  # the gradients are there
                mix_transposed(smem, Z + out_column, X + d, sums)
                cuda.syncthreads()  # all threads have read queries and gradients before the next tile is loaded

        store_partial_sums(smem, i, j, ds_sums)
        cuda.syncthreads()  # all threads' sums of ds are there
        key_factor *= factor
        for n in range(OUT_DISTANCES):
            distance = key_of(out_column + n)
            if first + distance < S and d < W:
                add_bias(smem, distance, w, h * W + d, sums, n)
                write(dr, ((slot * S + first + distance) * H + h) * W + d, sums, n, key_factor)
        write_bias_gradient(smem, W, dw, ((slot * cuda.gridDim.z + cuda.blockIdx.z) * H + h) * W, key_factor)

    return distances_backward


DISTANCES_BACKWARD = {tiles.width: make_distances_backward(tiles) for tiles in TILES}
