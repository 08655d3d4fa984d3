"""Persistent memory: heads read their persistent vectors by a squared ReLU. See `tinyprune.ops.persistent_memory`.

    for h: p = max(z[h] · pk[h]ᵀ, 0);  m[h] = p² · pv[h]          z, m (H, R, Dh)   p (R, N)

The products are those of linear layers, one head after the other, so that only one head's p, R · N numbers, is in
memory at a time; backward computes it again. The other kernels have a thread for each number, or for each head of a
position.
"""

import math
from typing import NamedTuple

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous, copied
from tinyprune.kernels.cuda.parts.sums import row_dots
from tinyprune.kernels.cuda.products.later import sum_later
from tinyprune.kernels.cuda.products.matmul import matmul
from tinyprune.ops.persistent_memory import check_arguments

THREADS = 256


class Kept(NamedTuple):
    """The cache. `y` holds the head outputs before their gates, (..., H, Dh)."""

    y: DeviceArray
    z: DeviceArray  # (H, R, Dh)
    inverses: DeviceArray  # 1 / rms, (H, R)
    pk: DeviceArray
    pv: DeviceArray
    gate: DeviceArray | None
    scale: float
    precision: str


@kernel(floats, floats, int32, int32, int32, float32, floats, floats, threads=THREADS)
def normalise(q, o, R, H, D, eps, z, inverses):
    """z (H, R, D) = (q + o) / rms(q + o), of q and o (R, H, D), and 1 / rms: a thread for each head of a position."""
    i = cuda.grid(1)
    if i < R * H:
        h, r = i // R, i % R
        at = (r * H + h) * D
        squares = float32(0)
        for d in range(D):
            x = q[at + d] + o[at + d]
            squares += x * x
        inverse = float32(1) / math.sqrt(squares / float32(D) + eps)
        inverses[i] = inverse
        for d in range(D):
            z[i * D + d] = (q[at + d] + o[at + d]) * inverse


@kernel(floats, floats, int32, int32, int32, int32, float32, int32, floats, floats, threads=THREADS)
def finish(m, gate, R, H, D, gated, scale, size, y, out):
    """y += m (H, R, D) and out = scale · gate[h] · y, both (R, H, D): a thread for each number."""
    i = cuda.grid(1)
    if i < size:
        d, h, r = i % D, i // D % H, i // (D * H)
        total = y[i] + m[(h * R + r) * D + d]
        y[i] = total
        out[i] = scale * total * (gate[h] if gated else float32(1))


@kernel(floats, int32, floats, threads=THREADS)
def square(p, size, out):
    """out = p², flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = p[i] * p[i]


@kernel(floats, floats, int32, threads=THREADS)
def square_backward(p, dr, size):
    """dr = 2 · p · dr, the gradient of max(a, 0)², and p = p², both flat, in place."""
    i = cuda.grid(1)
    if i < size:
        dr[i] *= float32(2) * p[i]
        p[i] *= p[i]


@kernel(floats, floats, int32, int32, int32, int32, float32, int32, floats, threads=THREADS)
def by_head(dout, gate, R, H, D, gated, scale, size, dy):
    """dy (H, R, D) = scale · gate[h] · dout (R, H, D): a thread for each number."""
    i = cuda.grid(1)
    if i < size:
        d, r, h = i % D, i // D % R, i // (D * R)
        dy[i] = scale * dout[(r * H + h) * D + d] * (gate[h] if gated else float32(1))


@kernel(*4 * (floats,), int32, int32, int32, floats, floats, threads=THREADS)
def normalise_backward(dz, z, inverses, dy, R, H, D, dq, do):
    """dq and do (R, H, D) of what `normalise` did and of y = o + m: a thread for each head of a position."""
    i = cuda.grid(1)
    if i < R * H:
        h, r = i // R, i % R
        at = (r * H + h) * D
        along = float32(0)
        for d in range(D):
            along += dz[i * D + d] * z[i * D + d]
        mean, inverse = along / float32(D), inverses[i]
        for d in range(D):
            dx = (dz[i * D + d] - z[i * D + d] * mean) * inverse
            dq[at + d] = dx
            do[at + d] = dy[i * D + d] + dx


def persistent_memory_forward(
    q: DeviceArray,
    o: DeviceArray,
    pk: DeviceArray,
    pv: DeviceArray,
    gate: DeviceArray | None = None,
    *,
    scale: float = 1.0,
    eps: float = 1e-5,
    precision: str = "float32",
) -> tuple[DeviceArray, Kept]:
    """Let the heads read their persistent vectors: `ops.persistent_memory_forward` for float32.

    For `precision` see `linear`.
    """
    check_arguments(q, o, pk, pv, gate)
    check_floats(q=q, o=o, pk=pk, pv=pv, **({} if gate is None else {"gate": gate}))
    q, o, pk, pv = (contiguous(x) for x in (q, o, pk, pv))
    *lead, H, Dh = q.shape
    R = math.prod(lead)
    z, m, inverses = empty((H, R, Dh)), empty((H, R, Dh)), empty((H, R))
    normalise(blocks(R * H, THREADS), q, o, R, H, Dh, np.float32(eps), z, inverses)
    for h in range(H):
        p = matmul(z[h], pk[h], transpose_b=True, relu=True, precision=precision)
        square(blocks(p.size, THREADS), p, p.size, p)
        matmul(p, pv[h], out=m[h], precision=precision)
    y, out = copied(o), empty(o.shape)
    gates, gated = (inverses, 0) if gate is None else (contiguous(gate), 1)
    finish(blocks(y.size, THREADS), m, gates, R, H, Dh, gated, np.float32(scale), y.size, y, out)
    return out, Kept(y, z, inverses, pk, pv, gate, scale, precision)


def persistent_memory_backward(dout: DeviceArray, cache: Kept) -> tuple[DeviceArray | None, ...]:
    """Return the gradients of `persistent_memory_forward`, as `ops.persistent_memory_backward`."""
    y, z, inverses, pk, pv, gate, scale, precision = cache
    check_gradient(dout, y.shape)
    dout = contiguous(dout)
    H, R, Dh = z.shape
    # out_h = c g_h y_h
    dy = empty(z.shape)
    gates, gated = (inverses, 0) if gate is None else (contiguous(gate), 1)
    by_head(blocks(dy.size, THREADS), dout, gates, R, H, Dh, gated, np.float32(scale), dy.size, dy)
    dgate = None
    if gate is not None:
        dgate = sum_later(row_dots(dout.reshape(R, H, Dh), y.reshape(R, H, Dh), scale))
    dz, dpk, dpv = empty(z.shape), empty(pk.shape), empty(pv.shape)
    for h in range(H):
        # y = o + r pv
        p = matmul(z[h], pk[h], transpose_b=True, relu=True, precision=precision)
        da = matmul(dy[h], pv[h], transpose_b=True, precision=precision)
        # r = max(a, 0)²
        square_backward(blocks(p.size, THREADS), p, da, p.size)
        matmul(p, dy[h], transpose_a=True, out=dpv[h], precision=precision)
        # a = z pkᵀ
        matmul(da, pk[h], out=dz[h], precision=precision)
        matmul(da, z[h], transpose_a=True, out=dpk[h], precision=precision)
    # z = (q + o) / rms(q + o)
    dq, do = empty(y.shape), empty(y.shape)
    normalise_backward(blocks(R * H, THREADS), dz, z, inverses, dy, R, H, Dh, dq, do)
    return dq, do, dpk, dpv, dgate
