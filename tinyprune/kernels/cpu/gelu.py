"""GELU: a smooth ReLU. See `tinyprune.ops.gelu`.

    for i: u = 2 √(2/π) · (a[i] + 0.044715 a[i]³);  s = sigmoid(u);  out[i] = a[i] · s
           da[i] = dout[i] · (s + a[i] · s · (1 − s) · du/da)

(1 + tanh z) / 2 is sigmoid(2 z), and that one exponential, `simd.sigmoid`. Only a is saved, to keep memory for
other things: backward computes s again, which takes a third longer than to read it would.
"""

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, check_floats, check_gradient, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, muladd, multiply, number, sigmoid, store, subtract
from tinyprune.ops.gelu import CUBIC, LINEAR

RUN = 4096  # entries that a thread takes at a time, whole vectors of any width
FIRST, THIRD = 2 * LINEAR, 2 * LINEAR * CUBIC  # u = FIRST · a + THIRD · a³
scalar_sigmoid = kernel(formulas.sigmoid)


@kernel
def activate_run(first, end, a, out):
    """Compute out for first ≤ i < end."""
    L = lanes(a)
    whole = end - (end - first) % L
    linear, cubic = broadcast(a, FIRST), broadcast(a, THIRD)
    for i in range(first, whole, L):
        x = load(a, i)
        u = multiply(x, muladd(multiply(x, x), cubic, linear))
        store(out, i, multiply(x, sigmoid(u)))
    c1, c3 = a.dtype.type(FIRST), a.dtype.type(THIRD)
    for i in range(whole, end):
        x = a[i]
        out[i] = x * scalar_sigmoid(x * (x * x * c3 + c1))


@kernel
def backward_run(first, end, dout, a, da):
    """Compute da for first ≤ i < end."""
    L = lanes(a)
    whole = end - (end - first) % L
    linear, cubic, three_cubic, one = (
        broadcast(a, FIRST),
        broadcast(a, THIRD),
        broadcast(a, 3 * THIRD),
        broadcast(a, 1),
    )
    for i in range(first, whole, L):
        x = load(a, i)
        square = multiply(x, x)
        s = sigmoid(multiply(x, muladd(square, cubic, linear)))
        du = muladd(square, three_cubic, linear)
        slope = muladd(multiply(multiply(x, s), subtract(one, s)), du, s)
        store(da, i, multiply(load(dout, i), slope))
    real = a.dtype.type
    c0, c1, c3 = real(1), real(FIRST), real(THIRD)
    for i in range(whole, end):
        x = a[i]
        s = scalar_sigmoid(x * (x * x * c3 + c1))
        da[i] = dout[i] * (s + x * s * (c0 - s) * (x * x * real(3 * THIRD) + c1))


@parallel_kernel
def activate(a, out):
    """Compute out, flat."""
    if a.size < SMALL:
        activate_run(number(0), a.size, a, out)
    else:
        for run in prange((a.size + RUN - 1) // RUN):
            first = number(run) * RUN
            activate_run(first, min(first + RUN, a.size), a, out)


@parallel_kernel
def backward(dout, a, da):
    """Compute da, flat."""
    if a.size < SMALL:
        backward_run(number(0), a.size, dout, a, da)
    else:
        for run in prange((a.size + RUN - 1) // RUN):
            first = number(run) * RUN
            backward_run(first, min(first + RUN, a.size), dout, a, da)


def gelu_forward(a: NDArray) -> tuple[NDArray, tuple]:
    """Apply GELU to every entry: `ops.gelu_forward` for float32 or float64."""
    check_floats(a=a)
    out = workspace.empty(a.shape, a.dtype)
    activate(flat(a), out.reshape(-1))
    return out, (a,)


def gelu_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `gelu_forward` with respect to `a`, as `ops.gelu_backward`."""
    (a,) = cache
    check_gradient(dout, a.shape, a.dtype)
    da = workspace.empty(a.shape, a.dtype)
    backward(flat(dout), flat(a), da.reshape(-1))
    return da
