"""Persistent memory: heads read their persistent vectors by a squared ReLU. See `tinyprune.ops.persistent_memory`.

Replaces for every head, at every position,

    z = (q + o) / rms(q + o)
    for n in range(N): y += max(z · pk[n], 0)² · pv[n]

by tiles of 32 positions that run along the persistent vectors, as in `attention`: keys are packed once into panels, and
scores, sums and gradients are one register-tiled product with different strides (`attention_tiles`). No N numbers a
position are ever in memory; backward computes z and the scores again. The gradients of pk and pv are summed in slots,
one for each head and group of positions, and then over the slots in order. The number of groups depends on the shapes
alone, so that no bit of the result depends on the number of threads.

Times (ms, 2 threads with AVX-512), forward and backward, B 16, H 8 in float32; in brackets what the same persistent
vectors cost inside of attention: T 64, Dh 16, N 512 takes 2.4 (2.6); T 128, Dh 32, N 1024 takes 17.4 (17.4); T 64, Dh
16, N 64 takes 0.6 (0.5).
"""

import math
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, check_gradient, contiguous
from tinyprune.kernels.cpu.attention import CHUNK, EVERY_KEY, UNITS, add_groups, flat, padded, share
from tinyprune.kernels.cpu.attention_tiles import ROWS, TILE, fill_zero, mix, outer, pack, scores_set, unpack, whole
from tinyprune.kernels.cpu.jit import parallel_kernel, part
from tinyprune.kernels.cpu.product import PARTS
from tinyprune.kernels.cpu.simd import (
    VECTOR_BYTES,
    add,
    broadcast,
    lanes,
    load,
    maximum,
    muladd,
    multiply,
    never_inline,
    number,
    store,
    subtract,
    take,
    total,
    zeros,
)
from tinyprune.kernels.cpu.workspace import empty
from tinyprune.ops.persistent_memory import check_arguments


class Inputs(NamedTuple):
    """The arguments, padded to D; in kernels all flat."""

    q: NDArray  # (R, H, D), and so o
    o: NDArray
    pk: NDArray  # (H, N, D), and so pv
    pv: NDArray


class Sizes(NamedTuple):
    """Numbers that are the same for every head."""

    R: int  # positions of all batch entries
    H: int
    N: int
    D: int  # Dh, rounded up to whole vectors with zeros
    Dh: int
    row: int  # distance between the rows of a tile's scores
    eps: float  # keeps rms away from 0


class Gradients(NamedTuple):
    """Where backward puts its results, flat. Those of the parameters have a slot for each group of positions."""

    dq: NDArray  # (R, H, D), and so do
    do: NDArray
    dpk: NDArray  # (groups, H, N, D), and so dpv
    dpv: NDArray
    dgate: NDArray  # (groups, H)


class PersistentMemoryCache(NamedTuple):
    """This is what `persistent_memory_backward` needs."""

    y: NDArray  # head outputs before their gates, (..., H, Dh)
    x: Inputs
    wide: NDArray  # y, padded to D
    gate: NDArray | None
    scale: float
    sizes: Sizes


@part
def normalise_tile(x, h, t0, sizes, z, inverses):
    """Load z of a tile of positions from t0 on, and 1 / rms of each; rows after the last position are zero."""
    W, D, H = lanes(z), sizes.D, sizes.H
    count = min(TILE, sizes.R - t0)
    for t in range(count):
        at = ((t0 + t) * H + h) * D
        squares = broadcast(z, 0.0)
        for d in range(0, D, W):
            both = add(load(x.q, at + d), load(x.o, at + d))
            squares = muladd(both, both, squares)
            store(z, t * D + d, both)
        inverse = 1 / math.sqrt(total(squares) / sizes.Dh + sizes.eps)
        inverses[t] = inverse
        share = broadcast(z, inverse)
        for d in range(t * D, (t + 1) * D, W):
            store(z, d, multiply(load(z, d), share))
    fill_zero(z, count * D, (TILE - count) * D)


@part
def square_rows(s, n, row):
    """Turn n scores of each position into max(s, 0)², in place; NaN stays."""
    never_inline()
    zero = zeros(s)
    for t in range(TILE):
        for j in range(t * row, t * row + n, lanes(s)):
            p = maximum(zero, load(s, j))
            store(s, j, multiply(p, p))


@part
def square_rows_backward(s, ds, n, row):
    """Turn n scores of each position, in s, into max(s, 0)², and dr, in ds, into 2 · max(s, 0) · dr."""
    never_inline()
    zero = zeros(s)
    for t in range(TILE):
        for j in range(t * row, t * row + n, lanes(s)):
            p = maximum(zero, load(s, j))
            store(s, j, multiply(p, p))
            store(ds, j, multiply(add(p, p), load(ds, j)))


@part
def forward_parts(counter, parts, splits, x, factors, y, out, sizes, memory):
    """Compute parts until all are taken. Part h · splits + split is a share of head h's tiles."""
    R, H, N, D, Dh, row, eps = sizes
    W, zero = lanes(y), number(0)
    width, size = 2 * W, TILE * D
    z, sums, inverses = memory[:size], memory[size : 2 * size], memory[2 * size : 2 * size + TILE]
    s_at = 2 * size + TILE
    s, panels = memory[s_at : s_at + TILE * row], memory[s_at + TILE * row :]
    tiles = (R + TILE - 1) // TILE
    packed = -1
    mine = take(counter)
    while mine < parts:
        h, split = mine // splits, mine % splits
        if h != packed:
            pack(x.pk, h * N * D, D, N, panels, zero, zero, whole(N, width) // width, D, 1.0)
            packed = h
        factor = broadcast(y, factors[h])
        for tile in range(*share(split, splits, tiles)):
            t0 = tile * TILE
            count = min(TILE, R - t0)
            normalise_tile(x, h, t0, sizes, z, inverses)
            for t in range(count):
                for d in range(0, D, W):
                    store(sums, t * D + d, load(x.o, ((t0 + t) * H + h) * D + d))
            for a in range(0, N, CHUNK):
                n = min(CHUNK, N - a)
                wide = whole(n, width)
                scores_set(z, zero, panels, a * D, wide, s, zero, row, D, EVERY_KEY)
                square_rows(s, wide, row)
                mix(s, zero, row, x.pv, (h * N + a) * D, D, n, sums, zero, D, EVERY_KEY)
            for t in range(count):
                for d in range(0, D, W):
                    at = ((t0 + t) * H + h) * D + d
                    result = load(sums, t * D + d)
                    store(y, at, result)
                    store(out, at, multiply(result, factor))
        mine = take(counter)


@parallel_kernel
def forward(x, factors, y, out, splits, sizes, scratch):
    """Compute all heads, a worker for each row of scratch. y and out may be one array."""
    counter = np.empty(1, np.int64)
    counter[0] = 0
    for i in prange(len(scratch)):
        s = Sizes(*sizes)
        forward_parts(counter, splits * s.H, splits, Inputs(*x), factors, y, out, s, scratch[i])


@part
def backward_units(counter, units, groups, x, y, dout, grad, factors, sizes, memory):
    """Compute units until all are taken. Unit h · groups + group is a share of head h's tiles."""
    R, H, N, D, Dh, row, eps = sizes
    W, zero = lanes(y), number(0)
    width, size = 2 * W, TILE * D
    z, dy, dz = memory[:size], memory[size : 2 * size], memory[2 * size : 3 * size]
    s_at = 3 * size + TILE
    inverses, s, ds = memory[3 * size : s_at], memory[s_at : s_at + TILE * row], memory[s_at + TILE * row :]
    panels = ds[TILE * row :]
    pv_at = whole(N, width) * D
    d_panels = panels[2 * pv_at :]
    count_panels = pv_at // (width * D)
    tiles = (R + TILE - 1) // TILE
    unit = take(counter)
    while unit < units:
        h, group = unit // groups, unit % groups
        pack(x.pk, h * N * D, D, N, panels, zero, zero, count_panels, D, 1.0)
        pack(x.pv, h * N * D, D, N, panels, pv_at, zero, count_panels, D, 1.0)
        fill_zero(d_panels, zero, 2 * pv_at)
        factor = broadcast(y, factors[h])
        gate_sum = 0.0
        for tile in range(*share(group, groups, tiles)):
            t0 = tile * TILE
            count = min(TILE, R - t0)
            normalise_tile(x, h, t0, sizes, z, inverses)
            fill_zero(dy, zero, size)
            fill_zero(dz, zero, size)
            for t in range(count):
                along = broadcast(y, 0.0)
                for d in range(0, D, W):
                    at = ((t0 + t) * H + h) * D + d
                    g = load(dout, at)
                    along = muladd(g, load(y, at), along)
                    store(dy, t * D + d, multiply(g, factor))
                gate_sum += total(along)
            for a in range(0, N, CHUNK):
                n = min(CHUNK, N - a)
                wide = whole(n, width)
                scores_set(z, zero, panels, a * D, wide, s, zero, row, D, EVERY_KEY)
                scores_set(dy, zero, panels, pv_at + a * D, wide, ds, zero, row, D, EVERY_KEY)
                square_rows_backward(s, ds, wide, row)
                mix(ds, zero, row, x.pk, (h * N + a) * D, D, n, dz, zero, D, EVERY_KEY)
                outer(dy, zero, s, zero, row, wide, d_panels, pv_at + a * D, D, EVERY_KEY)
                outer(z, zero, ds, zero, row, wide, d_panels, a * D, D, EVERY_KEY)
            # z = (q + o) / rms(q + o)
            for t in range(count):
                along = broadcast(y, 0.0)
                for d in range(t * D, (t + 1) * D, W):
                    along = muladd(load(dz, d), load(z, d), along)
                mean, inverse = broadcast(y, total(along) / Dh), broadcast(y, inverses[t])
                for d in range(0, D, W):
                    i, at = t * D + d, ((t0 + t) * H + h) * D + d
                    dx = multiply(subtract(load(dz, i), multiply(load(z, i), mean)), inverse)
                    store(grad.dq, at, dx)
                    store(grad.do, at, add(load(dy, i), dx))
        slot = group * H + h
        unpack(d_panels, zero, zero, N, grad.dpk, slot * N * D, D, D, 1.0)
        unpack(d_panels, pv_at, zero, N, grad.dpv, slot * N * D, D, D, 1.0)
        grad.dgate[slot] = gate_sum
        unit = take(counter)


@parallel_kernel
def backward(x, y, dout, grad, factors, groups, sizes, scratch):
    """Compute all heads, as `forward`."""
    counter = np.empty(1, np.int64)
    counter[0] = 0
    for i in prange(len(scratch)):
        s = Sizes(*sizes)
        backward_units(counter, groups * s.H, groups, Inputs(*x), y, dout, Gradients(*grad), factors, s, scratch[i])


def persistent_memory_forward(
    q: NDArray,
    o: NDArray,
    pk: NDArray,
    pv: NDArray,
    gate: NDArray | None = None,
    *,
    scale: float = 1.0,
    eps: float = 1e-5,
) -> tuple[NDArray, PersistentMemoryCache]:
    """Let the heads read their persistent vectors: `ops.persistent_memory_forward`, float32 or float64."""
    check_arguments(q, o, pk, pv, gate)
    check_floats(q=q, o=o, pk=pk, pv=pv, **({} if gate is None else {"gate": gate}))
    (*lead, H, Dh), N, dtype = q.shape, pk.shape[1], q.dtype
    W = VECTOR_BYTES // q.itemsize
    D = whole(Dh, max(W, ROWS))
    R, row = math.prod(lead), min(whole(N, TILE), CHUNK)
    sizes = Sizes(R, H, N, D, Dh, row, float(eps))
    x = Inputs(*(padded(array, D, dtype) for array in (q, o, pk, pv)))
    y = empty((*lead, H, D), dtype)
    out = y if gate is None and scale == 1 else empty(y.shape, dtype)
    factors = np.full(H, scale, dtype) if gate is None else gate * dtype.type(scale)
    tiles, workers = -(-R // TILE), get_num_threads()
    splits = max(1, min(tiles, -(-PARTS * workers // max(H, 1))))
    size = TILE * (2 * D + 1 + row) + whole(N, 2 * W) * D
    scratch = empty((max(1, min(workers, splits * H)), size), dtype)
    forward(flat(x), factors, *flat((y, out)), splits, tuple(sizes), scratch)
    narrow = y if Dh == D else contiguous(y[..., :Dh])
    result = narrow if out is y else out if Dh == D else contiguous(out[..., :Dh])
    return result, PersistentMemoryCache(narrow, x, y, gate, float(scale), sizes)


def persistent_memory_backward(dout: NDArray, cache: PersistentMemoryCache) -> tuple[NDArray | None, ...]:
    """Return the gradients of `persistent_memory_forward`, as `ops.persistent_memory_backward`."""
    narrow_y, x, y, gate, scale, sizes = cache
    R, H, N, D, Dh, row, eps = sizes
    dtype = y.dtype
    check_gradient(dout, narrow_y.shape, dtype)
    dout = padded(dout, D, dtype)
    tiles = -(-R // TILE)
    groups = max(1, min(tiles, -(-UNITS // max(H, 1))))
    factors = np.full(H, scale, dtype) if gate is None else gate * dtype.type(scale)
    dq, do = empty(y.shape, dtype), empty(y.shape, dtype)
    dpk, dpv = (empty((groups, H, N, D), dtype) for _ in range(2))
    dgate = np.empty((groups, H))
    size = TILE * (3 * D + 1 + 2 * row) + 4 * whole(N, 2 * VECTOR_BYTES // dtype.itemsize) * D
    scratch = empty((max(1, min(get_num_threads(), groups * H)), size), dtype)
    gradients = flat((dq, do, dpk, dpv, dgate))
    backward(flat(x), y.ravel(), dout.ravel(), gradients, factors, groups, tuple(sizes), scratch)
    for slots in (dpk, dpv):
        add_groups(slots.ravel(), groups, slots.size // groups)

    def narrow(array: NDArray) -> NDArray:
        """Remove the padding."""
        return array if Dh == D else contiguous(array[..., :Dh])

    gate_gradient = None if gate is None else (dgate.sum(0) * scale).astype(dtype)
    return narrow(dq), narrow(do), narrow(dpk[0]), narrow(dpv[0]), gate_gradient
