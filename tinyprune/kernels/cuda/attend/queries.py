"""Attention backward for queries: dq. A block has a tile of queries and goes through the keys as in `forward`.

    for each tile of keys:
        da = do ṽ        p = 2^(s − lse), the weights recomputed
        ds = p · (da · keep / (1 − dropout) − delta)            delta_i = Σ_d do · o, computed here for all kernels
        dq += ds (k + r)

Everything is linear in do = gate · dout. So the kernel computes with dout, and multiplies dq by the gate at the end; a
head whose gate is 0 is skipped. dq of a tile of queries stays in registers and is written once.
"""

from tinyprune.kernels.cuda.attend import steps, tiles
from tinyprune.kernels.cuda.attend.inputs import Inputs, Saved, Scales, Sizes
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Layout
from tinyprune.kernels.cuda.attend.walk import gate_of, key_tile, key_tiles, load_keys, source_of
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, exp2, load4, pointer_to, rounded_product
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32
from tinyprune.kernels.cuda.dropout import DROPOUT


def queries_layout(width: int) -> Layout:
    """Return the constants of a width. In shared memory lie, one after the other:

    y    values, then keys
    p    ds
    x    dout, then queries             } then position keys,
    z    some columns of position keys  } all columns
    """
    n = tiles.layout(width, queries=64, keys=32)
    p = n.keys * n.x_stride
    x = p + n.queries * n.p_stride
    z = x + n.queries * n.x_stride
    return n._replace(p=p, x=x, z=z, size=max(z + n.z_rows * n.z_stride, x + n.z_rows * n.x_stride))


@device
def row_delta(o, dout, W, scale):
    """Return Σ_d dout · o · scale of a query, from pointers to both."""
    delta = float32(0)
    for c in range(0, W, 4):
        o0, o1, o2, o3 = load4(o, c)
        g0, g1, g2, g3 = load4(dout, c)
        delta += (g0 * o0 + g1 * o1 + g2 * o2 + g3 * o3) * scale
    return delta


@device
def find_deltas(n, saved, sizes, place, queries, t0, scale, lse, delta):
    """Set lse and delta of the thread's queries, and write delta; where there is no query, its weights become 0."""
    b, h = cuda.blockIdx.x, cuda.blockIdx.y
    for m in range(ROWS):
        query = t0 + place.i + m * n.side
        lse[m], delta[m] = -LOWEST, float32(0)
        if query < sizes.T:
            at, row = (h * sizes.B + b) * sizes.T + query, queries.begin + query * queries.stride
            lse[m] = saved.lse[at]
            delta[m] = row_delta(pointer_to(saved.o, row), pointer_to(saved.dout, row), sizes.W, scale)
            if place.j == 0:  # one of the threads that have scores of this query
                saved.delta[at] = delta[m]


def make_queries_backward(n: Layout) -> Kernel:
    """Make the kernel of a width."""
    SIZE, SCORES, Z_REGS, SUMS = n.size, ROWS * COLUMNS, n.z_regs, 4 * n.out_queries

    @tiles.kernel_of(n, Inputs, Saved, floats, Sizes, Scales, Scales, float32, DROPOUT)
    def queries_backward(g, saved, dq, sizes, context, persistent, scale, dropout):
        """Compute dq (B, T, H, W) and delta: a block for a tile of queries, grid (B, H, tiles).

        saved: `Saved`, whose delta is written. Other arguments are those of `forward`.
        """
        T, S, H, N = sizes.T, sizes.S, sizes.H, sizes.N
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        lse = cuda.local.array(ROWS, float32)
        delta = cuda.local.array(ROWS, float32)
        sums = cuda.local.array(SUMS, float32)
        b, h, t0 = cuda.blockIdx.x, cuda.blockIdx.y, int32(cuda.blockIdx.z * n.queries)
        place = tiles.first_score(n)
        out_i, d = tiles.first_out(n)
        queries, douts = source_of(g.q, b, h, T, sizes), source_of(saved.dout, b, h, T, sizes)
        distances = source_of(g.r, 0, h, S, sizes)
        find_deltas(n, saved, sizes, place, queries, t0, scale, lse, delta)
        tiles.clear(sums, SUMS)
        factor = gate_of(g, sizes)

        persistent_turns, turns, low = key_tiles(n, sizes, t0)
        if factor == 0:
            turns = int32(0)
        entry_0 = ((b * H + h) * T + t0 + place.i) * (S + N) + place.j  # as in `forward`
        row_entries = n.side * (S + N)
        first, entry = int32(0), steps.add32(entry_0, S)
        for turn in range(turns):
            if turn == persistent_turns:
                first, entry = low, steps.add32(entry_0, low)
            own = t0 + S - T - first  # index in the tile of the key at the first query's position
            nearest = own - n.keys + 1  # distance of the first row of z
            tile = key_tile(n, turn < persistent_turns, g, sizes, place, first, own, context, persistent)
            tiles.load_rows(n, tile.values, first, 0, smem, n.y, n.keys, n.width)
            tiles.load_rows(n, douts, t0, 0, smem, n.x, n.queries, n.width)
            tiles.clear(da, SCORES)
            cuda.syncthreads()  # values and dout are there
            steps.dots(n, smem, n.x + place.i * n.x_stride, n.y + place.j * n.x_stride, da)
            cuda.syncthreads()  # all threads have read both before keys and queries replace them
            tiles.load_rows(n, queries, t0, 0, smem, n.x, n.queries, n.width)
            load_keys(n, smem, g, sizes, tile, first, nearest)
            steps.scores(n, smem, place, distances, nearest, tile.sliding, z_regs, s)
            if tile.sliding:
                cuda.syncthreads()  # all threads have read queries and columns of position keys
                tiles.load_rows(n, distances, nearest, 0, smem, n.x, n.z_rows, n.width)
            steps.hide(s, tile.last, tile.rise, tile.span, n.side)
            steps.drop(da, entry, row_entries, n.side, dropout)
            for m in range(ROWS):
                for c in range(COLUMNS):
                    at = m * COLUMNS + c
                    weight = exp2(rounded_product(s[at], tile.scales.score) - lse[m])
                    s[at] = weight * (da[at] * tile.scales.weight - delta[m]) * tile.scales.gradient
            steps.store_weights(n, smem, place.p, s)
            first, entry = int32(first + n.keys), steps.add32(entry, n.keys)
            cuda.syncthreads()  # gradients and position keys are there
            steps.mix(n, smem, n.p + out_i * n.p_stride, n.y + d, sums)
            if tile.sliding:
                z = n.x + (out_i + n.keys - 1) * n.x_stride + d
                steps.sliding_mix(n, smem, n.p + out_i * n.p_stride, z, z_regs, sums)
            cuda.syncthreads()  # all threads have read everything before the next tile is loaded
        for m in range(n.out_queries):
            query = t0 + out_i + m * n.side
            if query < T and d < sizes.W:
                steps.write(dq, queries.begin + query * queries.stride + d, sums, m, factor)

    return queries_backward


QUERIES_BACKWARD = {width: make_queries_backward(queries_layout(width)) for width in (16, 32, 64)}
