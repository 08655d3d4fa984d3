"""Arguments of the kernels of attention: NamedTuples of arrays, sizes and factors; a launch passes their fields."""

from typing import NamedTuple

from numba import types

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, floats, int32, pointers


class Inputs(NamedTuple):
    """What all four kernels read; None where there is none. W is Dh, rounded up to a multiple of 4 with zeros."""

    q: DeviceArray  # (B, T, H, W)
    k: DeviceArray  # (B, S, H, W)
    v: DeviceArray  # (B, S, H, W)
    r: DeviceArray | None  # (S, H, W), row = distance
    pk: DeviceArray | None  # (H, N, W)
    pv: DeviceArray | None  # (H, N, W)
    key_bias: DeviceArray | None  # u·k, (H, B, S)
    distance_bias: DeviceArray | None  # w·r, (H, S)
    gate: DeviceArray | None  # (H,)

    pointer = property(pointers)


class Saved(NamedTuple):
    """What backward's kernels read as well. `queries_backward` writes delta, which the others read."""

    dout: DeviceArray  # (B, T, H, W)
    o: DeviceArray  # heads' outputs before their gates, (B, T, H, W)
    lse: DeviceArray  # base-2 logarithm of Σ_j 2^s, (H, B, T)
    delta: DeviceArray  # Σ_d dout · o · scale, without the gate, (H, B, T)

    pointer = property(pointers)


class AttentionSizes(NamedTuple):
    """Layout of the axes, and how far back a query sees."""

    T: int
    S: int
    H: int
    N: int
    W: int
    span: int


class Scales(NamedTuple):
    """Factors of one kind of keys."""

    score: float  # log2 e / √Dh, or log2 e for persistent keys: scores are to base 2
    weight: float  # of weights in forward, of do·v in backward; √N times as large for persistent keys
    gradient: float  # from ds to the gradients of q, k and r: 1 / √Dh, or 1 for persistent keys


class KeyRows(NamedTuple):
    """Which keys a launch of `keys_backward` works on, and where they and their gradients lie."""

    count: int  # S, or N for persistent keys
    group: int  # batch entries whose gradients are summed in a slot; 1 for keys of the context
    slot_stride: int  # entries from one slot of dk to the next
    head_stride: int
    key_stride: int


class KeyTile(NamedTuple):
    """A tile of keys and values; `last`, `rise` and `span` say which keys a thread's queries see, see `sums.hide`."""

    keys: DeviceArray
    values: DeviceArray
    begin: int  # entry where row 0 begins
    stride: int  # entries from one row to the next
    count: int  # rows of the array
    last: int  # the last key that the thread's first query sees, counted from the thread's first key
    rise: int  # of `last` from one of the thread's queries to its next
    span: int  # keys before the last one that a query sees, too
    sliding: bool  # whether scores have position keys
    scales: Scales


@device
def key_tile(is_persistent, g, sizes, own, first, i, j, side, relative, context, persistent):
    """Return the `KeyTile` that begins with key `first`: of the context, or of the persistent keys.

    own: index in the tile of the key at the position of the first query.   i, j: the thread's first query and key.
    context, persistent: `Scales` of their keys.
    """
    _, S, H, N, W, span = sizes
    b, h, step = cuda.blockIdx.x, cuda.blockIdx.y, int32(H * W)
    if is_persistent:
        return KeyTile(g.pk, g.pv, h * N * W, W, N, int32(N - 1 - first - j), 0, N, False, persistent)
    begin, last = b * S * step + h * W, int32(own + i - j)
    return KeyTile(g.k, g.v, begin, step, S, last, side, span, relative != 0, context)


INPUTS, SAVED = (types.NamedTuple(len(kind._fields) * (floats,), kind) for kind in (Inputs, Saved))
SIZES, KEY_ROWS = (types.NamedTuple(len(kind._fields) * (int32,), kind) for kind in (AttentionSizes, KeyRows))
SCALES = types.NamedTuple(3 * (float32,), Scales)
