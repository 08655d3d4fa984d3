"""GELU, SwiGLU, add, the residual connection and rotary positions: a thread for each entry, or pair of entries.

    GELU      u = 2 √(2/π) · (a + 0.044715 a³);  s = sigmoid(u);  out = a · s
              da = dout · (s + a · s · (1 − s) · du/da)
    SwiGLU    s = sigmoid(a);  out = a · s · b;  db = dout · a · s;  da = dout · b · (s + a · s · (1 − s))

(1 + tanh z) / 2 is sigmoid(2 z). Only the inputs are saved, and backward computes s again.

The residual connection is one pass: neither y after dropout nor the mask is stored. About fifteen instructions compute
the mask of an entry, in forward and again in backward, which is faster than reading it from memory.

Cosines and sines of rotary positions are computed in main memory, in float64, and copied to the GPU's only once. A head
is rotated back by the same kernel with its halves exchanged: cos is the same for −angle, and sin changes its sign.
"""

from functools import lru_cache

import numpy as np

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.arguments import by_rows, check_alike, check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.instructions import divmod32
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.dropout import DROPOUT, keep_factor
from tinyprune.kernels.formulas import FIRST, THIRD
from tinyprune.ops import rotary
from tinyprune.ops.dropout import check_rate

THREADS = 256
REMEMBERED = 16  # tables of T · Dh / 2 numbers: for training, for evaluation, and a few for generation
sigmoid = device(formulas.sigmoid)


@device
def gelu_sigmoid(x):
    """Return s of GELU's formula."""
    return sigmoid(x * (x * x * float32(THIRD) + float32(FIRST)))


@kernel(floats, int32, floats, threads=THREADS)
def gelu(a, size, out):
    """Compute out = a · s, flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = a[i] * gelu_sigmoid(a[i])


@kernel(floats, floats, int32, floats, threads=THREADS)
def gelu_gradient(dout, a, size, da):
    """Compute da, flat; du is du/da of the formula."""
    i = cuda.grid(1)
    if i < size:
        x = a[i]
        s = gelu_sigmoid(x)
        du = x * x * float32(3 * THIRD) + float32(FIRST)
        da[i] = dout[i] * (s + x * s * (float32(1) - s) * du)


@kernel(floats, floats, int32, floats, threads=THREADS)
def swiglu(a, b, size, out):
    """Compute out = a · s · b, flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = a[i] * sigmoid(a[i]) * b[i]


@kernel(floats, floats, floats, int32, floats, floats, threads=THREADS)
def swiglu_gradients(dout, a, b, size, da, db):
    """Compute da and db, flat."""
    i = cuda.grid(1)
    if i < size:
        s = sigmoid(a[i])
        silu = a[i] * s
        db[i] = dout[i] * silu
        da[i] = dout[i] * b[i] * (s + silu * (float32(1) - s))


@kernel(floats, int32, floats, int32, int32, floats, threads=THREADS)
def add_all(a, a_step, b, b_step, size, out):
    """Compute out (rows, size) = a + b, where rows of a lie a_step entries apart, and those of b b_step."""
    row, i = cuda.blockIdx.y, cuda.grid(1)
    if i < size:
        out[row * size + i] = a[row * a_step + i] + b[row * b_step + i]


@kernel(floats, floats, DROPOUT, int32, floats, threads=THREADS)
def add_dropped(x, y, dropout, size, out):
    """Compute out = x + y · (factor where kept, else 0), all flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] + y[i] * keep_factor(i, dropout)


@kernel(floats, DROPOUT, int32, floats, threads=THREADS)
def drop(x, dropout, size, out):
    """Set out[i] to x[i] · factor if kept, else to x[i] · 0: as in NumPy, NaN and inf become NaN."""
    i = cuda.grid(1)
    if i < size:
        out[i] = x[i] * keep_factor(i, dropout)


@kernel(floats, floats, floats, int32, int32, int32, int32, int32, int32, floats, threads=THREADS)
def rotate_pairs(x, cos, sin, T, H, half, first, second, pairs, out):
    """Rotate pairs of x (B, T, H, Dh), flat: entry d from `first` on in a head, and entry d from `second` on."""
    n = cuda.grid(1)
    if n < pairs:
        head, d = divmod32(n, half)
        _, t = divmod32(divmod32(head, H)[0], T)
        c, s = cos[t * half + d], sin[t * half + d]
        i, j = head * 2 * half + first + d, head * 2 * half + second + d
        x1, x2 = x[i], x[j]
        out[i] = x1 * c - x2 * s
        out[j] = x2 * c + x1 * s


def gelu_forward(a: DeviceArray) -> tuple[DeviceArray, tuple]:
    """Apply GELU to every entry: `ops.gelu_forward` for float32."""
    check_floats(a=a)
    a, out = contiguous(a), empty(a.shape)
    gelu(blocks(a.size, THREADS), a, a.size, out)
    return out, (a,)


def gelu_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `gelu_forward` with respect to `a`, as `ops.gelu_backward`."""
    (a,) = cache
    check_gradient(dout, a.shape)
    da = empty(a.shape)
    gelu_gradient(blocks(a.size, THREADS), contiguous(dout), a, a.size, da)
    return da


def swiglu_forward(a: DeviceArray, b: DeviceArray) -> tuple[DeviceArray, tuple]:
    """Multiply SiLU of `a` by `b`: `ops.swiglu_forward` for float32."""
    check_alike(a=a, b=b)
    a, b, out = contiguous(a), contiguous(b), empty(a.shape)
    swiglu(blocks(a.size, THREADS), a, b, a.size, out)
    return out, (a, b)


def swiglu_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `swiglu_forward` in argument order, as `ops.swiglu_backward`."""
    a, b = cache
    check_gradient(dout, a.shape)
    da, db = empty(a.shape), empty(a.shape)
    swiglu_gradients(blocks(a.size, THREADS), contiguous(dout), a, b, a.size, da, db)
    return da, db


def add(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    """Return a + b, as `ops.add`, for float32. Views of three axes are read in place."""
    check_alike(a=a, b=b)
    out = empty(a.shape)
    if a.ndim == 3 and not (a.contiguous and b.contiguous):
        size = out.size // max(len(a), 1)
        add_all((blocks(size, THREADS), len(a)), *by_rows(a), *by_rows(b), size, out)
    else:
        add_all(blocks(out.size, THREADS), contiguous(a), 0, contiguous(b), 0, out.size, out)
    return out


def residual_forward(
    x: DeviceArray, y: DeviceArray, dropout: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[DeviceArray, tuple]:
    """Compute x + dropout(y): `ops.residual_forward` for float32."""
    check_alike(x=x, y=y)
    check_rate("dropout", dropout)
    if rng is None or dropout == 0:
        return add(x, y), (None, x.shape)
    mask, out = formulas.draw_mask(dropout, rng), empty(x.shape)
    add_dropped(blocks(x.size, THREADS), contiguous(x), contiguous(y), mask, x.size, out)
    return out, (mask, x.shape)


def residual_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `residual_forward`, as `ops.residual_backward`; that of x is `dout` itself."""
    mask, shape = cache
    check_gradient(dout, shape)
    if mask is None:
        return dout, dout
    dy = empty(shape)
    drop(blocks(dy.size, THREADS), contiguous(dout), mask, dy.size, dy)
    return dout, dy


@lru_cache(REMEMBERED)
def tables(T: int, Dh: int, base: rotary.Base, first: int) -> list[DeviceArray]:
    """Return cosines and sines in the GPU's memory."""
    return [to_device(table) for table in rotary.cos_and_sin(T, Dh, base, first, np.float32)]


def rotate(x: DeviceArray, base: rotary.Base, first: int = 0, *, back: bool = False) -> DeviceArray:
    """Turn the features of every position and head, as `ops.rotate`, for float32."""
    check_floats(x=x)
    rotary.check_arguments(x, base, first)
    _, T, H, Dh = x.shape
    half, pairs = Dh // 2, x.size // 2
    halves = (half, 0) if back else (0, half)
    out = empty(x.shape)
    rotate_pairs(blocks(pairs, THREADS), contiguous(x), *tables(T, Dh, base, first), T, H, half, *halves, pairs, out)
    return out
