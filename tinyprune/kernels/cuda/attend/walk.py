"""How a tile of queries goes through the keys, in `forward` and `queries`: persistent ones first, then the context's.

Of the context it takes those that at least one of its queries sees. Positions before the first query's have only keys:
there are M = S − T of them, and query t is at position t + M.
"""

from typing import NamedTuple

from tinyprune.kernels.cuda.attend.inputs import Scales
from tinyprune.kernels.cuda.attend.tiles import Source, load_biases, load_rows
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, int32


class KeyTile(NamedTuple):
    """A tile of keys and values; `last`, `rise` and `span` say which keys a thread's queries see, see `steps.hide`."""

    keys: Source
    values: Source
    last: int  # the last key that the thread's first query sees, counted from the thread's first key
    rise: int  # of `last` from one of the thread's queries to its next
    span: int  # keys before the last one that a query sees, too
    sliding: bool  # whether scores have position keys
    scales: Scales


@device
def gate_of(g, sizes):
    """Return the gate of the block's head, or 1 without gates."""
    return g.gate[cuda.blockIdx.y] if sizes.gated else float32(1)


@device
def source_of(array, b, h, count, sizes):
    """Return the rows of head h in batch entry b of an array (B, count, H, W)."""
    step = int32(sizes.H * sizes.W)  # entries from one position to the next
    return Source(array, b * count * step + h * sizes.W, step, count, sizes.W)


@device
def key_tiles(n, sizes, t0):
    """Return how many tiles of persistent keys there are, and of all keys, and the first key of the context."""
    M = sizes.S - sizes.T
    low, end = int32(max(0, t0 + M - sizes.span)), int32(min(t0 + n.queries, sizes.T) + M)
    persistent = int32((sizes.N + n.keys - 1) // n.keys)
    return persistent, int32(persistent + (end - low + n.keys - 1) // n.keys), low


@device
def key_tile(n, is_persistent, g, sizes, place, first, own, context, persistent):
    """Return the `KeyTile` that begins with key `first`: of the context, or of the persistent keys.

    own: index in the tile of the key at the position of the first query.   context, persistent: `Scales` of their keys.
    """
    S, N, W = sizes.S, sizes.N, sizes.W
    b, h = cuda.blockIdx.x, cuda.blockIdx.y
    if is_persistent:
        keys, values = Source(g.pk, h * N * W, W, N, W), Source(g.pv, h * N * W, W, N, W)
        return KeyTile(keys, values, int32(N - 1 - first - place.j), 0, N, False, persistent)
    keys, values = source_of(g.k, b, h, S, sizes), source_of(g.v, b, h, S, sizes)
    last = int32(own + place.i - place.j)
    return KeyTile(keys, values, last, n.side, sizes.span, sizes.relative != 0, context)


@device
def load_keys(n, smem, g, sizes, tile, first, nearest):
    """Load the keys of a tile, and the biases of keys and distances; nearest: distance of the first row of z."""
    load_rows(n, tile.keys, first, 0, smem, n.y, n.keys, n.width)
    if tile.sliding:
        b, h, S = cuda.blockIdx.x, cuda.blockIdx.y, sizes.S
        load_biases(n, g.key_bias, (h * sizes.B + b) * S, S, first, smem, n.y, n.keys, n.width)
        load_biases(n, g.distance_bias, h * S, S, nearest, smem, n.z, n.z_rows, n.z_columns)
