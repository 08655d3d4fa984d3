"""Attention backward for queries: dq. It goes through the keys as `forward` does.

    for each tile of keys:
        da = do ṽ        p = 2^(s − lse), the weights recomputed
        ds = p · (da · keep / (1 − dropout) − delta)            delta_i = Σ_d do · o, computed here for all kernels
        dq += ds (k + r)

Everything is linear in do = gate · dout, so the kernel uses dout and multiplies by the gate at the end; a head whose
gate is 0 is skipped. dq of a tile of queries stays in registers and is written once.
"""

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SAVED, SCALES, SIZES
from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths, make_functions
from tinyprune.kernels.cuda.device.instructions import exp2, own_thread
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.vectors import aligned, beyond, load4, store4
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def make_queries_backward(tiles: Tiles) -> Kernel:
    """Make the kernel for these sizes.

    Narrow tiles stay in shared memory: queries, dout and all columns of position keys, which are used twice. Of wide
    ones, queries and dout take turns, and position keys are brought twice, the second time in the queries' place.
    """
    f = make_functions(tiles)
    score_place, out_place, bring, bring_beside = f.score_place, f.out_place, f.bring, f.bring_beside
    dots, scores, hide, drop, put, mix = f.dots, f.scores, f.hide, f.drop, f.put, f.mix
    sliding_mix = make_functions(tiles._replace(columns=tiles.width)).sliding_mix
    D, QUERIES, KEYS, _, SIDE = tiles
    THREADS, EACH, SCORES, OUT_QUERIES, _, WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, SOME = lengths(tiles)
    SUMS = 4 * OUT_QUERIES
    TURNS = COLUMNS < D
    RESIDENT = 4 if D <= 32 else 3  # blocks of a multiprocessor: their threads have 128 registers each, or 168
    # shared memory: values, then keys; gradients of scores; queries; dout; position keys
    P = KEYS * WIDE
    X = P + QUERIES * WEIGHTS
    DOUT = X if TURNS else X + QUERIES * WIDE
    Z = DOUT + QUERIES * WIDE
    ALL_Z = X if TURNS else Z
    SIZE = Z + SLIDES * NARROW

    types = (INPUTS, SAVED, floats, SIZES, SCALES, SCALES, float32, float32, int32, int32, DROPOUT)

    @kernel(*types, name=f"queries_backward_{D}", threads=THREADS, hot=True, resident=RESIDENT)
    def queries_backward(x, saved, dq, sizes, context, persistent, context_key, scale, relative, gated, dropout):
        """dq (B, T, H, W) and delta: a block for a tile of queries, grid (B, H, tiles).

        context_key: 1 / √Dh, from ds to dq; for persistent keys it is 1.   The rest as in `forward`.
        """
        T, S, H, N, W, span = sizes
        tile = aligned(cuda.shared.array(SIZE, float32))
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        some = cuda.local.array(SOME, float32)
        lse = cuda.local.array(ROWS, float32)
        delta = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * QUERIES)
        i, j, column = score_place(own_thread(THREADS))
        out_i, d = out_place(own_thread(THREADS))
        weights, z = P + i * WEIGHTS + column, Z + (i - j + KEYS - 1) * NARROW
        step, M = int32(H * W), S - T
        q_at, k_at = b * T * step + h * W, b * S * step + h * W
        for m in range(ROWS):
            query = t0 + i + m * SIDE
            at = (b * T + query) * H + h
            lse[m], delta[m] = -LOWEST, float32(0)
            if query < T:
                lse[m] = saved.lse[at]
                o, dout = beyond(saved.o, q_at + query * step), beyond(saved.dout, q_at + query * step)
                for c in range(0, W, 4):
                    o0, o1, o2, o3 = load4(o, c)
                    g0, g1, g2, g3 = load4(dout, c)
                    delta[m] += (g0 * o0 + g1 * o1 + g2 * o2 + g3 * o3) * scale
                if j == 0:  # one of the threads that have this query
                    saved.delta[at] = delta[m]
        clear(sums, SUMS)
        if not TURNS:
            bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
            bring(saved.dout, q_at, step, t0, T, 0, W, tile, DOUT, QUERIES, D)
        factor = x.gate[h] if gated else float32(1)

        low, end = int32(max(0, t0 + M - span)), int32(min(t0 + QUERIES, T) + M)
        persistent_tiles = int32((N + KEYS - 1) // KEYS)
        rounds = int32(persistent_tiles + (end - low + KEYS - 1) // KEYS)
        if factor == 0:
            rounds = int32(0)
        entry_0, row_entries = ((b * H + h) * T + t0 + i) * (S + N) + j, SIDE * (S + N)
        first, entry = int32(0), count_on(entry_0, S)
        for n in range(rounds):
            if n == persistent_tiles:
                first, entry = low, count_on(entry_0, low)
            own = t0 + M - first
            if n < persistent_tiles:
                sliding = False
                keys, values, at, row, rows = x.pk, x.pv, h * N * W, W, N
                near, climb, reach = int32(N - 1 - first - j), 0, N
                to_score, to_weight, to_key = persistent.score, persistent.weight, float32(1)
            else:
                sliding = relative != 0
                keys, values, at, row, rows = x.k, x.v, k_at, step, S
                near, climb, reach = int32(own + i - j), SIDE, span
                to_score, to_weight, to_key = context.score, context.weight, context_key
            bring(values, at, row, first, rows, 0, W, tile, 0, KEYS, D)
            if TURNS:
                bring(saved.dout, q_at, step, t0, T, 0, W, tile, DOUT, QUERIES, D)
            clear(da, SCORES)
            cuda.syncthreads()  # values and dout are there
            dots(tile, DOUT + i * WIDE, j * WIDE, da)
            cuda.syncthreads()  # everyone has read the values before keys replace them
            bring(keys, at, row, first, rows, 0, W, tile, 0, KEYS, D)
            if TURNS:
                bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
            if sliding:
                bring_beside(x.key_bias, b * S * H + h, H, first, S, tile, 0, KEYS, D)
                bring_beside(x.distance_bias, h, H, own - KEYS + 1, S, tile, Z, SLIDES, COLUMNS)
            own_query, own_key, distance = X + i * WIDE, j * WIDE, own - KEYS + 1
            scores(tile, own_query, own_key, z, Z, x.r, h * W, step, distance, S, W, sliding, some, s)
            if TURNS and sliding:
                cuda.syncthreads()  # everyone has read queries and columns of position keys
                bring(x.r, h * W, step, distance, S, 0, W, tile, ALL_Z, SLIDES, D)
            hide(s, near, climb, reach)
            drop(da, entry, row_entries, SIDE, dropout)
            for m in range(ROWS):
                for c in range(EACH):
                    at = m * EACH + c
                    s[at] = exp2(s[at] * to_score - lse[m]) * (da[at] * to_weight - delta[m]) * to_key
                put(tile, weights, s, m)
            first, entry = int32(first + KEYS), count_on(entry, KEYS)
            cuda.syncthreads()  # gradients and position keys are there
            mix(tile, P + out_i * WEIGHTS, d, sums)
            if sliding:
                sliding_mix(tile, P + out_i * WEIGHTS, ALL_Z + (out_i + KEYS - 1) * WIDE + d, some, sums)
            cuda.syncthreads()  # everyone has read everything before the next tile is brought
        for m in range(OUT_QUERIES):
            query = t0 + out_i + m * SIDE
            if query < T and d < W:
                x0, x1, x2, x3 = sums[4 * m], sums[4 * m + 1], sums[4 * m + 2], sums[4 * m + 3]
                store4(dq, q_at + query * step + d, x0 * factor, x1 * factor, x2 * factor, x3 * factor)

    queries_backward.tiles = tiles
    return queries_backward


QUERIES_BACKWARD = {D: make_queries_backward(Tiles(width=D, queries=64, keys=32)) for D in (16, 32, 64)}
