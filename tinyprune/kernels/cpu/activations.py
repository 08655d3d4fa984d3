"""GELU, and SwiGLU: SiLU of one half of a hidden layer times the other. See `tinyprune.ops.gelu` and `swiglu`.

    gelu     for i: u = 2 √(2/π) · (a[i] + 0.044715 a[i]³);  s = sigmoid(u);  out[i] = a[i] · s
                    da[i] = dout[i] · (s + a[i] · s · (1 − s) · du/da)
    swiglu   for i: s = sigmoid(a[i]);  out[i] = a[i] · s · b[i]
                    db[i] = dout[i] · a[i] · s;  da[i] = dout[i] · b[i] · (s + a[i] · s · (1 − s))

(1 + tanh z) / 2 is sigmoid(2 z), and that one exponential, `simd.sigmoid`. Only the arguments are saved, to keep memory
for other things: backward computes s again, which takes a third longer than to read it would.
"""

from numba import int64, prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_alike, check_floats, check_gradient, flat
from tinyprune.kernels.cpu.jit import kernel, loop_kernel
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, muladd, multiply, sigmoid, store, subtract
from tinyprune.kernels.formulas import FIRST, THIRD

RUN = 4096  # entries that a thread takes at a time, whole vectors of any width
scalar_sigmoid = kernel(formulas.sigmoid)


@kernel
def activate_run(first, end, a, b, out):
    """Compute out for first ≤ i < end. Without b, which is None then, it is GELU; Numba compiles one of the two."""
    L, real = lanes(a), a.dtype.type
    whole = end - (end - first) % L
    linear, cubic = broadcast(a, FIRST), broadcast(a, THIRD)
    for i in range(first, whole, L):
        x = load(a, i)
        if b is None:
            store(out, i, multiply(x, sigmoid(multiply(x, muladd(multiply(x, x), cubic, linear)))))
        else:
            store(out, i, multiply(multiply(x, sigmoid(x)), load(b, i)))
    for i in range(whole, end):
        y = a[i]
        if b is None:
            out[i] = y * scalar_sigmoid(y * (y * y * real(THIRD) + real(FIRST)))
        else:
            out[i] = y * scalar_sigmoid(y) * b[i]


@kernel
def backward_run(first, end, dout, a, b, da, db):
    """Compute da and db for first ≤ i < end, as `activate_run`."""
    L, real = lanes(a), a.dtype.type
    whole = end - (end - first) % L
    linear, cubic, three_cubic = broadcast(a, FIRST), broadcast(a, THIRD), broadcast(a, 3 * THIRD)
    one = broadcast(a, 1)
    for i in range(first, whole, L):
        x, g = load(a, i), load(dout, i)
        if b is None:
            square = multiply(x, x)
            s = sigmoid(multiply(x, muladd(square, cubic, linear)))
            du = muladd(square, three_cubic, linear)
            store(da, i, multiply(g, muladd(multiply(multiply(x, s), subtract(one, s)), du, s)))
        else:
            s = sigmoid(x)
            silu = multiply(x, s)
            store(db, i, multiply(g, silu))
            store(da, i, multiply(multiply(g, load(b, i)), muladd(silu, subtract(one, s), s)))
    for i in range(whole, end):
        y = a[i]
        if b is None:
            p = scalar_sigmoid(y * (y * y * real(THIRD) + real(FIRST)))
            da[i] = dout[i] * (p + y * p * (real(1) - p) * (y * y * real(3 * THIRD) + real(FIRST)))
        else:
            p = scalar_sigmoid(y)
            db[i] = dout[i] * (y * p)
            da[i] = dout[i] * b[i] * (p + y * p * (real(1) - p))


@loop_kernel
def activate(a, b, out):
    """Compute out; all are flat."""
    for run in prange((a.size + RUN - 1) // RUN):
        first = int64(run) * RUN
        activate_run(first, min(first + RUN, a.size), a, b, out)


@loop_kernel
def backward(dout, a, b, da, db):
    """Compute da and db; all are flat."""
    for run in prange((a.size + RUN - 1) // RUN):
        first = int64(run) * RUN
        backward_run(first, min(first + RUN, a.size), dout, a, b, da, db)


def gelu_forward(a: NDArray) -> tuple[NDArray, tuple]:
    """Apply GELU to every entry: `ops.gelu_forward` for float32 or float64."""
    check_floats(a=a)
    out = workspace.empty(a.shape, a.dtype)
    activate(a.size, flat(a), None, out.reshape(-1))
    return out, (a,)


def gelu_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `gelu_forward` with respect to `a`, as `ops.gelu_backward`."""
    (a,) = cache
    check_gradient(dout, a.shape, a.dtype)
    da = workspace.empty(a.shape, a.dtype)
    backward(a.size, flat(dout), flat(a), None, da.reshape(-1), None)
    return da


def swiglu_forward(a: NDArray, b: NDArray) -> tuple[NDArray, tuple]:
    """Multiply SiLU of `a` by `b`: `ops.swiglu_forward` for float32 or float64."""
    check_alike(a=a, b=b)
    out = workspace.empty(a.shape, a.dtype)
    activate(a.size, flat(a), flat(b), out.reshape(-1))
    return out, (a, b)


def swiglu_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `swiglu_forward`, as `ops.swiglu_backward`."""
    a, b = cache
    check_gradient(dout, a.shape, a.dtype)
    da, db = workspace.empty(a.shape, a.dtype), workspace.empty(a.shape, a.dtype)
    backward(a.size, flat(dout), flat(a), flat(b), da.reshape(-1), db.reshape(-1))
    return da, db
