"""SwiGLU: SiLU of one half of a hidden layer times the other. See `tinyprune.ops.swiglu`.

    for i: s = sigmoid(a[i]);  out[i] = a[i] · s · b[i]
           db[i] = dout[i] · a[i] · s;  da[i] = dout[i] · b[i] · (s + a[i] · s · (1 − s))

One pass each way, as in `gelu`; backward makes both gradients and computes s again.
"""

from numba import prange
from numpy.typing import NDArray

from tinyprune.kernels import formulas
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import SMALL, alike, check_alike, check_gradient, flat
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, muladd, multiply, number, sigmoid, store, subtract

RUN = 4096  # entries that a thread takes at a time, whole vectors of any width
scalar_sigmoid = kernel(formulas.sigmoid)


@kernel
def activate_run(first, end, a, b, out):
    """Compute out for first ≤ i < end."""
    L = lanes(a)
    whole = end - (end - first) % L
    for i in range(first, whole, L):
        x = load(a, i)
        store(out, i, multiply(multiply(x, sigmoid(x)), load(b, i)))
    for i in range(whole, end):
        out[i] = a[i] * scalar_sigmoid(a[i]) * b[i]


@kernel
def backward_run(first, end, dout, a, b, da, db):
    """Compute da and db for first ≤ i < end."""
    L = lanes(a)
    whole = end - (end - first) % L
    one = broadcast(a, 1)
    for i in range(first, whole, L):
        x, g = load(a, i), load(dout, i)
        s = sigmoid(x)
        silu = multiply(x, s)
        store(db, i, multiply(g, silu))
        store(da, i, multiply(multiply(g, load(b, i)), muladd(silu, subtract(one, s), s)))
    for i in range(whole, end):
        s = scalar_sigmoid(a[i])
        silu = a[i] * s
        db[i] = dout[i] * silu
        da[i] = dout[i] * b[i] * (s + silu * (a.dtype.type(1) - s))


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
