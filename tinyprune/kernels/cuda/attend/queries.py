"""Attention backward for queries: dq. It goes through the keys as `forward` does.

    for each tile of keys:
        da = do ṽ        p = 2^(s − lse), the weights recomputed
        ds = p · (da · keep / (1 − dropout) − delta)            delta_i = Σ_d do · o, computed here for all kernels
        dq += ds (k + r)

Everything is linear in do = gate · dout, so the kernel uses dout and multiplies by the gate at the end; a head whose
gate is 0 is skipped. dq of a tile of queries stays in registers and is written once.
"""

from tinyprune.kernels.cuda.attend.arguments import INPUTS, SAVED, SCALES, SIZES, source
from tinyprune.kernels.cuda.attend.sums import make_masks, make_mix, make_put, make_scores, write
from tinyprune.kernels.cuda.attend.tiles import LOWEST, ROWS, Tiles, clear, count_on, lengths, make_loads, make_places
from tinyprune.kernels.cuda.device.instructions import aligned, beyond, exp2, load4, own_thread
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.masks import DROPOUT


def shared(tiles: Tiles) -> tuple[int, int, int, int]:
    """Return where operands begin in shared memory, and its size; values, then keys are the first.

    Gradients of scores follow, then dout or queries, then some columns of position keys; in the place of these two, all
    columns of position keys.
    """
    n = lengths(tiles)
    p = tiles.keys * n.wide
    x = p + tiles.queries * n.weights
    z = x + tiles.queries * n.wide
    return p, x, z, max(z + n.slides * n.narrow, x + n.slides * n.wide)


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
    score_place, out_place, _, _ = make_places(tiles)
    bring, bring_beside = make_loads(tiles)
    dots, _, scores = make_scores(tiles, bring)
    (hide, drop), (mix, sliding_mix), put = make_masks(tiles), make_mix(tiles), make_put(tiles)
    D, QUERIES, KEYS, _, SIDE = tiles
    n, (P, X, Z, SIZE) = lengths(tiles), shared(tiles)
    THREADS, EACH, SCORES, OUT_QUERIES, SUMS = n.threads, n.each, n.scores, n.out_queries, 4 * n.out_queries
    WIDE, NARROW, WEIGHTS, COLUMNS, SLIDES, SOME = n.wide, n.narrow, n.weights, n.columns, n.slides, n.some
    types = (INPUTS, SAVED, floats, SIZES, SCALES, SCALES, float32, int32, int32, DROPOUT)

    @kernel(*types, name=f"queries_backward_{D}", threads=THREADS, hot=True, resident=n.resident, tiles=tiles)
    def queries_backward(x, saved, dq, sizes, context, persistent, scale, relative, gated, dropout):
        """Compute dq (B, T, H, W) and delta: a block for a tile of queries, grid (B, H, tiles).

        The other arguments are those of `forward`.
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
        q_at = b * T * step + h * W
        for m in range(ROWS):
            query = t0 + i + m * SIDE
            at = (b * T + query) * H + h
            lse[m], delta[m] = -LOWEST, float32(0)
            if query < T:
                lse[m] = saved.lse[at]
                at_row = q_at + query * step
                delta[m] = row_delta(beyond(saved.o, at_row), beyond(saved.dout, at_row), W, scale)
                if j == 0:  # one of the threads that have this query
                    saved.delta[at] = delta[m]
        clear(sums, SUMS)
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
            keys, values, at, row, rows, near, climb, reach, sliding, scales = source(
                n < persistent_tiles, x, sizes, own, first, i, j, SIDE, relative, context, persistent
            )
            bring(values, at, row, first, rows, 0, W, tile, 0, KEYS, D)
            bring(saved.dout, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
            clear(da, SCORES)
            cuda.syncthreads()  # values and dout are there
            dots(tile, X + i * WIDE, j * WIDE, da)
            cuda.syncthreads()  # all threads have read both before keys and queries replace them
            bring(keys, at, row, first, rows, 0, W, tile, 0, KEYS, D)
            bring(x.q, q_at, step, t0, T, 0, W, tile, X, QUERIES, D)
            if sliding:
                bring_beside(x.key_bias, b * S * H + h, H, first, S, tile, 0, KEYS, D)
                bring_beside(x.distance_bias, h, H, own - KEYS + 1, S, tile, Z, SLIDES, COLUMNS)
            distance = own - KEYS + 1
            scores(tile, X + i * WIDE, j * WIDE, z, Z, x.r, h * W, step, distance, S, W, sliding, some, s)
            if sliding:
                cuda.syncthreads()  # all threads have read queries and columns of position keys
                bring(x.r, h * W, step, distance, S, 0, W, tile, X, SLIDES, D)
            hide(s, near, climb, reach)
            drop(da, entry, row_entries, SIDE, dropout)
            for m in range(ROWS):
                for c in range(EACH):
                    at = m * EACH + c
                    s[at] = exp2(s[at] * scales.score - lse[m]) * (da[at] * scales.weight - delta[m]) * scales.gradient
                put(tile, weights, s, m)
            first, entry = int32(first + KEYS), count_on(entry, KEYS)
            cuda.syncthreads()  # gradients and position keys are there
            mix(tile, P + out_i * WEIGHTS, d, sums)
            if sliding:
                sliding_mix(tile, P + out_i * WEIGHTS, X + (out_i + KEYS - 1) * WIDE + d, some, sums)
            cuda.syncthreads()  # all threads have read everything before the next tile is brought
        for m in range(OUT_QUERIES):
            query = t0 + out_i + m * SIDE
            if query < T and d < W:
                write(dq, q_at + query * step + d, sums, m, factor)

    return queries_backward


QUERIES_BACKWARD = {D: make_queries_backward(Tiles(width=D, queries=64, keys=32)) for D in (16, 32, 64)}
