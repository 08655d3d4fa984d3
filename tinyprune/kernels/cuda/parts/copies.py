"""New arrays from one: copies of views, rows padded to a multiple of 4, multiples, constants. A thread for each entry.

    copied    out[i0, i1, i2, i3] = x[i0·s0 + i1·s1 + i2·s2 + i3·s3]
    wide      out[row, d] = x[row, d] if d < D else 0
    scaled    out[i] = x[i] · factor

A copy reads in whatever order x lies, so a transposed matrix takes longer than a view of rows. Kernels that can read a
view where it lies do not need one.
"""

import numpy as np

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_gradient

THREADS = 256
AXES = 4


@kernel(floats, *3 * (int32,), *4 * (int32,), int32, floats, threads=THREADS)
def gather(x, n1, n2, n3, s0, s1, s2, s3, size, out):
    """out, flat, of shape (…, n1, n2, n3): from x with these strides."""
    i = cuda.grid(1)
    if i < size:
        rest, i3 = i // n3, i % n3
        rest, i2 = rest // n2, rest % n2
        i0, i1 = rest // n1, rest % n1
        out[i] = x[i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3]


@kernel(floats, int32, float32, threads=THREADS)
def fill(x, size, value):
    """x[i] = value, flat."""
    i = cuda.grid(1)
    if i < size:
        x[i] = value


@kernel(floats, int32, int32, int32, floats, threads=THREADS)
def widen(x, D, W, size, out):
    """out (…, W) of x (…, D), both flat."""
    n = cuda.grid(1)
    if n < size:
        row, d = n // W, n % W
        out[n] = x[row * D + d] if d < D else float32(0)


@kernel(floats, floats, int32, floats, threads=THREADS)
def times(x, factor, size, out):
    """out = x · factor[0], both flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * factor[0]


def copied(x: DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
    """Copy a view of up to 4 axes into a contiguous array: `out`, of as many entries, or a new one."""
    out = empty(x.shape) if out is None else out
    missing = AXES - x.ndim
    _, *n = (*missing * (1,), *x.shape)
    strides = (*missing * (0,), *x.strides)
    gather(blocks(x.size, THREADS), x, *n, *strides, x.size, out)
    return out


def contiguous(x: DeviceArray) -> DeviceArray:
    """Return `x` itself if it is contiguous and begins on a multiple of 16 bytes, otherwise a copy that does."""
    return x if x.first % 4 == 0 and x.contiguous else copied(x)


def by_rows(x: DeviceArray) -> tuple[DeviceArray, int]:
    """Return `x` and the entries from x[0] to x[1]; it is copied unless each x[b] is contiguous."""
    if x.size and not x[0].contiguous:
        x = copied(x)
    return x, x.strides[0]


def zeros(shape: int | tuple[int, ...]) -> DeviceArray:
    """Return an array of float32 zeros."""
    x = empty(shape)
    fill(blocks(x.size, THREADS), x, x.size, np.float32(0))
    return x


def wide(x: DeviceArray) -> DeviceArray:
    """Return `x`, contiguous, its rows padded with zeros to a multiple of 4 numbers, to be read 16 bytes at a time."""
    D = x.shape[-1]
    W = -(-D // 4) * 4
    x = contiguous(x)
    if D == W:
        return x
    out = empty((*x.shape[:-1], W))
    widen(blocks(out.size, THREADS), x, D, W, out.size, out)
    return out


def narrow(x: DeviceArray, D: int) -> DeviceArray:
    """Take the first D numbers of each row, contiguous; nothing is copied if that is all of them."""
    return x if x.shape[-1] == D else copied(x[(*(x.ndim - 1) * (slice(None),), slice(D))])


def scaled(x: DeviceArray, factor: float | DeviceArray, name: str = "dout") -> DeviceArray:
    """Multiply `x` by a number, or by an array of shape () such as a loss's gradient, called `name` in messages."""
    if isinstance(factor, DeviceArray):
        check_gradient(factor, (), name)
    else:
        number, factor = np.float32(factor), empty(())
        fill(1, factor, 1, number)
    out = empty(x.shape)
    times(blocks(x.size, THREADS), contiguous(x), factor, x.size, out)
    return out
