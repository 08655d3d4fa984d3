"""What the kernels of attention are given: NamedTuples of arrays, sizes and factors; a launch passes their fields."""

from typing import NamedTuple

from tinyprune.kernels.cuda.device.array import DeviceArray


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


class Saved(NamedTuple):
    """What backward's kernels read as well. `queries_backward` writes delta, which the others read."""

    dout: DeviceArray  # (B, T, H, W)
    o: DeviceArray  # heads' outputs before their gates, (B, T, H, W)
    lse: DeviceArray  # base-2 logarithm of Σ_j 2^s, (H, B, T)
    delta: DeviceArray  # Σ_d dout · o · scale, without the gate, (H, B, T)


class KeyGradients(NamedTuple):
    """What `keys_backward` writes, and u, which it adds; u and du are None for persistent keys."""

    u: DeviceArray | None  # (H, W)
    dk: DeviceArray  # of the shape of k, or slots of dpk, (slots, H, N, W)
    dv: DeviceArray
    du: DeviceArray | None  # slots: (B · tiles, H, W)


class Sizes(NamedTuple):
    """Lengths of the axes, how far back a query sees, and which of the optional arrays there are."""

    B: int
    T: int
    S: int
    H: int
    N: int
    W: int
    span: int
    relative: int  # whether there are r, u and w
    gated: int  # whether there are gates


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
