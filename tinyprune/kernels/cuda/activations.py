"""GELU, and SwiGLU: SiLU of one half of a hidden layer times the other. A thread for each entry.

    gelu      u = 2 √(2/π) · (a + 0.044715 a³);  s = sigmoid(u);  out = a · s
              da = dout · (s + a · s · (1 − s) · du/da)
    swiglu    s = sigmoid(a);  out = a · s · b;  db = dout · a · s;  da = dout · b · (s + a · s · (1 − s))

(1 + tanh z) / 2 is sigmoid(2 z). Only the inputs are saved, and backward computes s again. See `tinyprune.ops.gelu` and
`swiglu`.
"""

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.arguments import THREADS, check_alike, check_floats, check_gradient, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.formulas import FIRST, THIRD

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
