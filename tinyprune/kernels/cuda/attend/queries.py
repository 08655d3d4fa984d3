"""Attention backward for queries: dq. A block has a tile of queries and goes through the keys as in `forward`.

    for each tile of keys:
        da = do ṽ        p = 2^(s − lse), the weights recomputed
        ds = p · (da · keep / (1 − dropout) − delta)            delta_i = Σ_d do · o, computed here for all kernels
        dq += ds (k + r)

Everything is linear in do = gate · dout. So the kernel computes with dout, and multiplies dq by the gate at the end; a
head whose gate is 0 is skipped. dq of a tile of queries stays in registers and is written once.
"""

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SAVED, SCALES, SIZES, key_tile
from tinyprune.kernels.cuda.attend.sums import add32, drop, hide, make_mix, make_scores, store_row, write
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Tiles, clear, layout, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, exp2, load4, pointer_to, rounded_product, thread_index
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def shared(tiles: Tiles) -> tuple[int, int, int, int]:
    """Return where operands begin in shared memory, and its size:

    0    values, then keys
    P    ds
    X    dout, then queries             } then position keys,
    Z    some columns of position keys  } all columns
    """
    n = layout(tiles)
    p = tiles.keys * n.x_stride
    x = p + tiles.queries * n.p_stride
    z = x + tiles.queries * n.x_stride
    return p, x, z, max(z + n.z_rows * n.z_stride, x + n.z_rows * n.x_stride)


@device
def row_delta(o, dout, W, scale):
    """Return Σ_d dout · o · scale of a query, from pointers to both."""
    delta = float32(0)
    for c in range(0, W, 4):
        o0, o1, o2, o3 = load4(o, c)
        g0, g1, g2, g3 = load4(dout, c)
        delta += (g0 * o0 + g1 * o1 + g2 * o2 + g3 * o3) * scale
    return delta


def make_queries_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for tiles of these sizes."""
    first_score, first_out, _, _ = make_places(tiles)
    load_rows, load_biases = make_loads(tiles)
    (dots, _, scores), (mix, sliding_mix, _) = make_scores(tiles, load_rows), make_mix(tiles)
    D, QUERIES, KEYS, _, SIDE = tiles
    THREADS, RESIDENT, SCORES, OUT_QUERIES, _, X_STRIDE, Z_STRIDE, P_STRIDE, Z_COLUMNS, Z_ROWS, Z_REGS = layout(tiles)
    (P, X, Z, SIZE), SUMS = shared(tiles), 4 * OUT_QUERIES
    types = (INPUTS, SAVED, floats, SIZES, SCALES, SCALES, float32, int32, int32, DROPOUT)

    @kernel(*types, name=f"queries_backward_{D}", threads=THREADS, resident=RESIDENT, tiles=tiles)
    def queries_backward(g, saved, dq, sizes, context, persistent, scale, relative, gated, dropout):
        """Compute dq (B, T, H, W) and delta: a block for a tile of queries, grid (B, H, tiles).

        saved: `Saved`, whose delta is written. Other arguments are those of `forward`.
        """
        T, S, H, N, W, span = sizes
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        lse = cuda.local.array(ROWS, float32)
        delta = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * QUERIES)
        i, j, column = first_score(thread_index(THREADS))
        out_i, d = first_out(thread_index(THREADS))
        p, z = P + i * P_STRIDE + column, Z + (i - j + KEYS - 1) * Z_STRIDE
        step, M = int32(H * W), S - T  # entries from one position to the next; keys before the first query's
        q_at = b * T * step + h * W
        for m in range(ROWS):
            query = t0 + i + m * SIDE
            at = (h * cuda.gridDim.x + b) * T + query
            lse[m], delta[m] = -LOWEST, float32(0)  # of queries after the last: their weights are 0
            if query < T:
                lse[m] = saved.lse[at]
                at_row = q_at + query * step
                delta[m] = row_delta(pointer_to(saved.o, at_row), pointer_to(saved.dout, at_row), W, scale)
                if j == 0:  # one of the threads that have scores of this query
                    saved.delta[at] = delta[m]
        clear(sums, SUMS)
        factor = g.gate[h] if gated else float32(1)

        low, end = int32(max(0, t0 + M - span)), int32(min(t0 + QUERIES, T) + M)  # as in `forward`
        persistent_tiles = int32((N + KEYS - 1) // KEYS)
        rounds = int32(persistent_tiles + (end - low + KEYS - 1) // KEYS)
        if factor == 0:
            rounds = int32(0)
        entry_0, row_entries = ((b * H + h) * T + t0 + i) * (S + N) + j, SIDE * (S + N)
        first, entry = int32(0), add32(entry_0, S)
        for n in range(rounds):
            if n == persistent_tiles:
                first, entry = low, add32(entry_0, low)
            own = t0 + M - first  # index in the tile of the key at the first query's position
            tile = key_tile(n < persistent_tiles, g, sizes, own, first, i, j, SIDE, relative, context, persistent)
            load_rows(tile.values, tile.begin, tile.stride, first, tile.count, 0, W, smem, 0, KEYS, D)
            load_rows(saved.dout, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
            clear(da, SCORES)
            cuda.syncthreads()  # values and dout are there
            dots(smem, X + i * X_STRIDE, j * X_STRIDE, da)
            cuda.syncthreads()  # all threads have read both before keys and queries replace them
            load_rows(tile.keys, tile.begin, tile.stride, first, tile.count, 0, W, smem, 0, KEYS, D)
            load_rows(g.q, q_at, step, t0, T, 0, W, smem, X, QUERIES, D)
            if tile.sliding:
                load_biases(g.key_bias, (h * cuda.gridDim.x + b) * S, first, S, smem, 0, KEYS, D)
                load_biases(g.distance_bias, h * S, own - KEYS + 1, S, smem, Z, Z_ROWS, Z_COLUMNS)
            nearest = own - KEYS + 1  # distance of the first row of z
            scores(smem, X + i * X_STRIDE, j * X_STRIDE, z, Z, g.r, h * W, step, nearest, S, W, tile.sliding, z_regs, s)
            if tile.sliding:
                cuda.syncthreads()  # all threads have read queries and columns of position keys
                load_rows(g.r, h * W, step, nearest, S, 0, W, smem, X, Z_ROWS, D)
            hide(s, tile.last, tile.rise, tile.span, SIDE)
            drop(da, entry, row_entries, SIDE, dropout)
            for m in range(ROWS):
                for c in range(COLUMNS):
                    at = m * COLUMNS + c
                    weight = exp2(rounded_product(s[at], tile.scales.score) - lse[m])
                    s[at] = weight * (da[at] * tile.scales.weight - delta[m]) * tile.scales.gradient
                store_row(smem, p + m * SIDE * P_STRIDE, s, m)
            first, entry = int32(first + KEYS), add32(entry, KEYS)
            cuda.syncthreads()  # gradients and position keys are there
            mix(smem, P + out_i * P_STRIDE, d, sums)
            if tile.sliding:
                sliding_mix(smem, P + out_i * P_STRIDE, X + (out_i + KEYS - 1) * X_STRIDE + d, z_regs, sums)
            cuda.syncthreads()  # all threads have read everything before the next tile is loaded
        for m in range(OUT_QUERIES):
            query = t0 + out_i + m * SIDE
            if query < T and d < W:
                write(dq, q_at + query * step + d, sums, m, factor)

    return queries_backward


QUERIES_BACKWARD = {D: make_queries_backward(Tiles(width=D, queries=64, keys=32)) for D in (16, 32, 64)}
