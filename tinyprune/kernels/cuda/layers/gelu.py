"""GELU: a smooth ReLU. See `tinyprune.ops.gelu`.

    for i: u = 2 √(2/π) · (a[i] + 0.044715 a[i]³);  s = sigmoid(u);  out[i] = a[i] · s
           da[i] = dout[i] · (s + a[i] · s · (1 − s) · du/da)

A thread for each entry. (1 + tanh z) / 2 is sigmoid(2 z); only a is saved.
"""

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, device, float32, floats, int32, kernel
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.parts.copies import contiguous
from tinyprune.ops.gelu import CUBIC, LINEAR

THREADS = 256
FIRST, THIRD = 2 * LINEAR, 2 * LINEAR * CUBIC  # u = FIRST · a + THIRD · a³
sigmoid = device(formulas.sigmoid)


@kernel(floats, int32, floats, threads=THREADS, hot=True)
def activate(a, size, out):
    """out = a · s, flat."""
    i = cuda.grid(1)
    if i < size:
        x = a[i]
        out[i] = x * sigmoid(x * (x * x * float32(THIRD) + float32(FIRST)))


@kernel(floats, floats, int32, floats, threads=THREADS, hot=True)
def gradient(dout, a, size, da):
    """da = dout · (s + a · s · (1 − s) · du/da), flat."""
    i = cuda.grid(1)
    if i < size:
        x = a[i]
        s = sigmoid(x * (x * x * float32(THIRD) + float32(FIRST)))
        du = x * x * float32(3 * THIRD) + float32(FIRST)
        da[i] = dout[i] * (s + x * s * (float32(1) - s) * du)


def gelu_forward(a: DeviceArray) -> tuple[DeviceArray, tuple]:
    """Apply GELU to every entry: `ops.gelu_forward` for float32."""
    check_floats(a=a)
    a, out = contiguous(a), empty(a.shape)
    activate(blocks(a.size, THREADS), a, a.size, out)
    return out, (a,)


def gelu_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `gelu_forward` with respect to `a`, as `ops.gelu_backward`."""
    (a,) = cache
    check_gradient(dout, a.shape)
    da = empty(a.shape)
    gradient(blocks(a.size, THREADS), contiguous(dout), a, a.size, da)
    return da
