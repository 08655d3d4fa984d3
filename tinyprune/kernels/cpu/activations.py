"""GELU, and SwiGLU: SiLU of one half of a hidden layer times the other. See `tinyprune.ops.gelu` and `swiglu`.

    gelu     for i: u = 2 √(2/π) · (a[i] + 0.044715 a[i]³);  s = sigmoid(u);  out[i] = a[i] · s
                    da[i] = dout[i] · (s + a[i] · s · (1 − s) · du/da)
    swiglu   for i: s = sigmoid(a[i]);  out[i] = a[i] · s · b[i]
                    db[i] = dout[i] · a[i] · s;  da[i] = dout[i] · b[i] · (s + a[i] · s · (1 − s))

(1 + tanh z) / 2 is sigmoid(2 z), and that one exponential, `simd.sigmoid`. Only the arguments are saved, to keep memory
for other things: backward computes s again, which takes a third longer than to read it would.
"""

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, alike, check_alike, check_floats, check_gradient, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel, part
from tinyprune.kernels.cpu.partial import load_some, store_some
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, muladd, multiply, number, sigmoid, store, subtract
from tinyprune.ops.gelu import CUBIC, LINEAR

RUN = 4096  # entries that a thread takes at a time, whole vectors of any width
FIRST, THIRD = 2 * LINEAR, 2 * LINEAR * CUBIC  # u = FIRST · a + THIRD · a³


@part
def gelu(a, x):
    """Return out for a vector x of a."""
    return multiply(x, sigmoid(multiply(x, muladd(multiply(x, x), broadcast(a, THIRD), broadcast(a, FIRST)))))


@part
def gelu_gradient(a, g, x):
    """Return da for vectors g of dout and x of a."""
    linear, square = broadcast(a, FIRST), multiply(x, x)
    s = sigmoid(multiply(x, muladd(square, broadcast(a, THIRD), linear)))
    du = muladd(square, broadcast(a, 3 * THIRD), linear)
    return multiply(g, muladd(multiply(multiply(x, s), subtract(broadcast(a, 1), s)), du, s))


@part
def swiglu(x, y):
    """Return out for vectors x of a and y of b."""
    return multiply(multiply(x, sigmoid(x)), y)


@part
def swiglu_gradients(a, g, x, y):
    """Return da and db for vectors g of dout, x of a and y of b."""
    s = sigmoid(x)
    silu = multiply(x, s)
    return multiply(multiply(g, y), muladd(silu, subtract(broadcast(a, 1), s), s)), multiply(g, silu)


@kernel
def activate_run(first, end, a, b, out):
    """Compute out for first ≤ i < end. Without b, which is None then, it is GELU; Numba compiles one of the two."""
    L = lanes(a)
    whole = end - (end - first) % L
    for i in range(first, whole, L):
        x = load(a, i)
        store(out, i, gelu(a, x) if b is None else swiglu(x, load(b, i)))
    left = end - whole
    if left:
        x = load_some(a, whole, left)
        store_some(out, whole, gelu(a, x) if b is None else swiglu(x, load_some(b, whole, left)), left)


@kernel
def backward_run(first, end, dout, a, b, da, db):
    """Compute da and db for first ≤ i < end, as `activate_run`."""
    L = lanes(a)
    whole = end - (end - first) % L
    for i in range(first, whole, L):
        g, x = load(dout, i), load(a, i)
        if b is None:
            store(da, i, gelu_gradient(a, g, x))
        else:
            dx, dy = swiglu_gradients(a, g, x, load(b, i))
            store(da, i, dx)
            store(db, i, dy)
    left = end - whole
    if left:
        g, x = load_some(dout, whole, left), load_some(a, whole, left)
        if b is None:
            store_some(da, whole, gelu_gradient(a, g, x), left)
        else:
            dx, dy = swiglu_gradients(a, g, x, load_some(b, whole, left))
            store_some(da, whole, dx, left)
            store_some(db, whole, dy, left)


@parallel_kernel
def activate(a, b, out):
    """Compute out; all are flat."""
    if a.size < SMALL:
        activate_run(number(0), a.size, a, b, out)
    else:
        for run in prange((a.size + RUN - 1) // RUN):
            first = number(run) * RUN
            activate_run(first, min(first + RUN, a.size), a, b, out)


@parallel_kernel
def backward(dout, a, b, da, db):
    """Compute da and db; all are flat."""
    if a.size < SMALL:
        backward_run(number(0), a.size, dout, a, b, da, db)
    else:
        for run in prange((a.size + RUN - 1) // RUN):
            first = number(run) * RUN
            backward_run(first, min(first + RUN, a.size), dout, a, b, da, db)


def gelu_forward(a: NDArray) -> tuple[NDArray, tuple]:
    """Apply GELU to every entry: `ops.gelu_forward` for float32 or float64."""
    check_floats(a=a)
    out = workspace.empty(a.shape, a.dtype)
    activate(flat(a), None, out.reshape(-1))
    return out, (a,)


def gelu_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `gelu_forward` with respect to `a`, as `ops.gelu_backward`."""
    (a,) = cache
    check_gradient(dout, a.shape, a.dtype)
    da = workspace.empty(a.shape, a.dtype)
    backward(flat(dout), flat(a), None, da.reshape(-1), None)
    return da


def swiglu_forward(a: NDArray, b: NDArray) -> tuple[NDArray, tuple]:
    """Multiply SiLU of `a` by `b`: `ops.swiglu_forward` for float32 or float64."""
    if not alike(a, b):
        check_alike(a=a, b=b)
    out = workspace.empty(a.shape, a.dtype)
    activate(flat(a), flat(b), out.reshape(-1))
    return out, (a, b)


def swiglu_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `swiglu_forward`, as `ops.swiglu_backward`."""
    a, b = cache
    check_gradient(dout, a.shape, a.dtype)
    da, db = workspace.empty(a.shape, a.dtype), workspace.empty(a.shape, a.dtype)
    backward(flat(dout), flat(a), flat(b), da.reshape(-1), db.reshape(-1))
    return da, db
