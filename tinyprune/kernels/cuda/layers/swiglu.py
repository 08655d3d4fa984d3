"""SwiGLU: SiLU of one half of a hidden layer times the other. See `tinyprune.ops.swiglu`.

    for i: s = sigmoid(a[i]);  out[i] = a[i] · s · b[i]
           db[i] = dout[i] · a[i] · s;  da[i] = dout[i] · b[i] · (s + a[i] · s · (1 − s))

A thread for each entry; backward makes both gradients and computes s again.
"""

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_alike, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous

THREADS = 256
sigmoid = device(formulas.sigmoid)


@kernel(floats, floats, int32, floats, threads=THREADS, hot=True)
def activate(a, b, size, out):
    """out = a · s · b, flat."""
    i = cuda.grid(1)
    if i < size:
        out[i] = a[i] * sigmoid(a[i]) * b[i]


@kernel(floats, floats, floats, int32, floats, floats, threads=THREADS, hot=True)
def gradients(dout, a, b, size, da, db):
    """da and db, flat."""
    i = cuda.grid(1)
    if i < size:
        s = sigmoid(a[i])
        silu = a[i] * s
        db[i] = dout[i] * silu
        da[i] = dout[i] * b[i] * (s + silu * (float32(1) - s))


def swiglu_forward(a: DeviceArray, b: DeviceArray) -> tuple[DeviceArray, tuple]:
    """Multiply SiLU of `a` by `b`: `ops.swiglu_forward` for float32."""
    check_alike(a=a, b=b)
    a, b, out = contiguous(a), contiguous(b), empty(a.shape)
    activate(blocks(a.size, THREADS), a, b, a.size, out)
    return out, (a, b)


def swiglu_backward(dout: DeviceArray, cache: tuple) -> tuple[DeviceArray, DeviceArray]:
    """Gradients of `swiglu_forward` in argument order, as `ops.swiglu_backward`."""
    a, b = cache
    check_gradient(dout, a.shape)
    da, db = empty(a.shape), empty(a.shape)
    gradients(blocks(a.size, THREADS), contiguous(dout), a, b, a.size, da, db)
    return da, db
