"""What the kernels of attention are given: tuples of arrays, sizes and factors, which Numba takes apart at a launch."""

from typing import NamedTuple

from numba import types

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, floats, int32, pointers


class Inputs(NamedTuple):
    """What all four kernels read. None where there is none. W is Dh, rounded up to a multiple of 4 with zeros."""

    q: DeviceArray  # (B, T, H, W)
    k: DeviceArray  # (B, S, H, W), and so v
    v: DeviceArray
    r: DeviceArray | None  # (S, H, W), row = distance
    pk: DeviceArray | None  # (H, N, W)
    pv: DeviceArray | None
    key_bias: DeviceArray | None  # u·k, (B, S, H)
    distance_bias: DeviceArray | None  # w·r, (S, H)
    gate: DeviceArray | None  # (H,)

    pointer = property(pointers)


class Saved(NamedTuple):
    """Backward reads these as well; the kernel for queries writes delta, which the others read."""

    dout: DeviceArray  # (B, T, H, W)
    o: DeviceArray  # heads' outputs before their gates, (B, T, H, W)
    lse: DeviceArray  # base-2 logarithm of Σ_j 2^s, (B, T, H)
    delta: DeviceArray  # Σ_d dout · o · scale, without the gate, (B, T, H)

    pointer = property(pointers)


class AttentionSizes(NamedTuple):
    """Lengths of the axes, and how far back a query sees."""

    T: int
    S: int
    H: int
    N: int
    W: int
    span: int


class Scales(NamedTuple):
    """Factors of one kind of keys."""

    score: float  # log2 e / √Dh, or log2 e for persistent keys: scores are to base 2
    weight: float  # of weights in forward, and of do·v in backward; times √N for persistent keys
    gradient: float  # from ds to the gradients of q, k and r: 1 / √Dh, or 1 for persistent keys


class Keys(NamedTuple):
    """Which keys a launch of `keys_backward` works on, and where their gradients lie."""

    count: int
    group: int  # batch entries that are summed in a slot; 1 for keys of the context
    slot: int  # entries from one slot of dk to the next
    head: int  # from one head
    row: int  # from one key


class Source(NamedTuple):
    """A tile of keys: where its rows lie, and which of them a thread's queries see (`sums.make_masks`)."""

    keys: DeviceArray
    values: DeviceArray
    at: int  # where row 0 begins
    row: int  # entries from one row to the next
    rows: int
    near: int
    climb: int
    reach: int
    sliding: bool  # whether their scores have position keys
    scales: Scales


@device
def source(is_persistent, x, sizes, own, first, i, j, side, relative, context, persistent):
    """Return the `Source` of the tile whose first key is `first`: of the context, or of the persistent keys.

    own: the key in the tile at which the tile's first query stands.   i, j: the thread's first query and key.
    context, persistent: `Scales` of their keys.
    """
    _, S, H, N, W, span = sizes
    b, h, step = cuda.blockIdx.x, cuda.blockIdx.y, int32(H * W)
    if is_persistent:
        return Source(x.pk, x.pv, h * N * W, W, N, int32(N - 1 - first - j), 0, N, False, persistent)
    at, near = b * S * step + h * W, int32(own + i - j)
    return Source(x.k, x.v, at, step, S, near, side, span, relative != 0, context)


INPUTS, SAVED = (types.NamedTuple(len(kind._fields) * (floats,), kind) for kind in (Inputs, Saved))
SIZES, KEYS_OF = (types.NamedTuple(len(kind._fields) * (int32,), kind) for kind in (AttentionSizes, Keys))
SCALES = types.NamedTuple(3 * (float32,), Scales)
