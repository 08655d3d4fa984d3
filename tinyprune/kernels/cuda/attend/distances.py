"""Attention backward for position keys: dr and dw. It mirrors `keys`: distances stay and keys slide.

    distance of query i and key j = i + M − j,        so key of query i at distance c = i + M − c

A block has a tile of position keys, and goes through all queries of a group of batch entries:

    for each tile of queries:
        ds  = p · (do vᵀ · keep / (1 − dropout) − delta), by query and distance
        dr += dsᵀ (q + w)

Each group writes to a slot of dr, and to a slot of dw for each tile. In the terms of `tiles`, y is the position keys
(distance j, not key j), and z first the values, then the keys.
"""

from tinyprune.kernels.cuda.attend import steps, tiles
from tinyprune.kernels.cuda.attend.inputs import Inputs, Saved, Scales, Sizes
from tinyprune.kernels.cuda.attend.keys import keys_layout, store_gradients, to_weights
from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, Layout
from tinyprune.kernels.cuda.attend.walk import gate_of, source_of
from tinyprune.kernels.cuda.device.instructions import ALIGNMENT
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32
from tinyprune.kernels.cuda.dropout import DROPOUT


@device
def hide_distances(s, key, far, side):
    """Set scores to LOWEST where the thread's query m has no key at its distance c, or does not see it.

    The key is key + (m − c) · side, and has to be ≥ 0; the query sees it if c · side ≤ far. See `steps.hide`.
    """
    if min(key, far) < (COLUMNS - 1) * side:
        for m in range(ROWS):
            last = int32(min(key + m * side, far))
            for c in range(COLUMNS):
                if c * side > last:
                    s[m * COLUMNS + c] = LOWEST


def make_distances_backward(n: Layout) -> Kernel:
    """Make the kernel of a width; the layout's `keys` are distances."""
    SIZE, SCORES, Z_REGS, SUMS = n.size, ROWS * COLUMNS, n.z_regs, 4 * n.out_keys

    @tiles.kernel_of(n, Inputs, Saved, *3 * (floats,), Sizes, int32, Scales, DROPOUT)
    def distances_backward(g, saved, w, dr, dw, sizes, group, scales, dropout):
        """Compute dr (slots, S, H, W) and dw (slots, tiles, H, W): a block for a tile, grid (slots, H, tiles).

        g, saved: `Inputs`, `Saved`.   group: batch entries that are summed in a slot.
        """
        B, T, S, H, N, W = sizes.B, sizes.T, sizes.S, sizes.H, sizes.N, sizes.W
        smem = cuda.shared.array(SIZE, float32, ALIGNMENT)
        s = cuda.local.array(SCORES, float32)
        da = cuda.local.array(SCORES, float32)
        z_regs = cuda.local.array(Z_REGS, float32)
        ds_sums = cuda.local.array(COLUMNS, float32)
        sums = cuda.local.array(SUMS, float32)
        slot, h, first = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z * n.keys
        place = tiles.first_score(n)
        out_column, d = tiles.first_key_out(n)
        tiles.load_rows(n, source_of(g.r, 0, h, S, sizes), first, 0, smem, n.y, n.keys, n.width)
        tiles.load_biases(n, g.distance_bias, h * S, S, first, smem, n.y, n.keys, n.width)
        tiles.clear(sums, SUMS)
        tiles.clear(ds_sums, COLUMNS)
        factor = gate_of(g, sizes)

        begin = max(0, first - (S - T))
        end = begin if factor == 0 or first > sizes.span else T
        far = int32(sizes.span - first - place.j)
        row_entries = n.side * (S + N + 1)  # + 1: a query later, a key later
        for b in range(slot * group, min(B, (slot + 1) * group)):
            queries, douts = source_of(g.q, b, h, T, sizes), source_of(saved.dout, b, h, T, sizes)
            keys, values = source_of(g.k, b, h, S, sizes), source_of(g.v, b, h, S, sizes)
            at = (h * B + b) * T + begin + place.i  # of the thread's first query
            key = int32(begin + S - T - first + place.i - place.j)  # at the thread's first query and distance
            entry = steps.add32(key, ((b * H + h) * T + begin + place.i) * (S + N))
            for t0 in range(begin, end, n.queries):
                left = T - t0 - place.i
                key_0 = t0 + S - T - first - n.keys + 1  # in the first row of z
                tiles.load_rows(n, douts, t0, 0, smem, n.x, n.queries, n.width)
                tiles.clear(da, SCORES)
                steps.add_products(n, smem, place, values, key_0, False, True, z_regs, da)
                cuda.syncthreads()  # all threads have read dout and values

                tiles.load_rows(n, queries, t0, 0, smem, n.x, n.queries, n.width)
                tiles.load_biases(n, g.key_bias, (h * B + b) * S, S, key_0, smem, n.z, n.z_rows, n.z_columns)
                steps.scores(n, smem, place, keys, key_0, True, z_regs, s)
                cuda.syncthreads()  # all threads have read keys before gradients replace them

                hide_distances(s, key, far, n.side)
                steps.drop(da, entry, row_entries, -n.side, dropout)
                to_weights(n, saved, at, left, scales.score, s)
                store_gradients(n, smem, place.p, saved, at, left, scales.weight, s, da, ds_sums)
                at += n.queries
                key, entry = int32(key + n.queries), steps.add32(entry, n.queries // n.side * row_entries)
                cuda.syncthreads()  # the gradients are there
                steps.outer(n, smem, n.p + out_column, n.x + d, sums)
                cuda.syncthreads()  # all threads have read queries and gradients before the next tile is loaded

        steps.store_partial_sums(n, smem, place, ds_sums)
        cuda.syncthreads()  # all threads' sums of ds are there
        factor *= scales.gradient
        for m in range(n.out_keys):
            distance = tiles.key_of(n, out_column + m)
            if first + distance < S and d < W:
                steps.add_bias(n, smem, distance, w, h * W + d, sums, m)
                steps.write(dr, ((slot * S + first + distance) * H + h) * W + d, sums, m, factor)
        steps.write_bias_gradient(n, smem, sizes, dw, factor)

    return distances_backward


LAYOUTS = {width: keys_layout(width, has_values=False) for width in (16, 32, 64)}
DISTANCES_BACKWARD = {width: make_distances_backward(n) for width, n in LAYOUTS.items()}
