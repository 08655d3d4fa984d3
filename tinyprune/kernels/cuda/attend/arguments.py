"""What the kernels of attention are given: tuples of arrays, sizes and factors, which Numba takes apart at a launch."""

from typing import NamedTuple

from numba import types

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.jit import float32, floats, int32, pointers


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


class Sizes(NamedTuple):
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


class Keys(NamedTuple):
    """Which keys a launch of `keys_backward` works on, and where their gradients lie."""

    count: int
    group: int  # batch entries that are summed in a slot; 1 for keys of the context
    slot: int  # entries from one slot of dk to the next
    head: int  # from one head
    row: int  # from one key


INPUTS, SAVED = (types.NamedTuple(len(kind._fields) * (floats,), kind) for kind in (Inputs, Saved))
SIZES, KEYS_OF = (types.NamedTuple(len(kind._fields) * (int32,), kind) for kind in (Sizes, Keys))
SCALES = types.NamedTuple(2 * (float32,), Scales)
