"""Projections: queries for the segment, keys and values for all of its context. See `tinyprune.ops.projections`.

`matmul` reads the last T rows of each batch entry in place, and accumulates dn in place.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.products.matmul import matmul
from tinyprune.ops.projections import check_arguments


def last(x: DeviceArray, T: int) -> DeviceArray:
    """Return the view x[:, S−T:] of (B, S, D)."""
    return x[:, x.shape[1] - T :]


def projections_forward(
    n: DeviceArray, Wq: DeviceArray, Wk: DeviceArray, Wv: DeviceArray, T: int, *, precision: str = "float32"
) -> tuple[tuple[DeviceArray, DeviceArray, DeviceArray], tuple]:
    """Compute q, k and v: `ops.projections_forward` for float32. For `precision`, also of backward, see `matmul`."""
    check_floats(n=n, Wq=Wq, Wk=Wk, Wv=Wv)
    check_arguments(n, Wq, Wk, Wv, T)
    q, k, v = (matmul(x, W, precision=precision) for x, W in ((last(n, T), Wq), (n, Wk), (n, Wv)))
    return (q, k, v), (n, Wq, Wk, Wv, T, precision)


def projections_backward(dq: DeviceArray, dk: DeviceArray, dv: DeviceArray, cache: tuple) -> tuple[DeviceArray, ...]:
    """Gradients of `projections_forward` in argument order, as `ops.projections_backward`."""
    n, Wq, Wk, Wv, T, precision = cache
    B, S, _ = n.shape
    for name, dout, rows in (("dq", dq, T), ("dk", dk, S), ("dv", dv, S)):
        check_gradient(dout, (B, rows, Wq.shape[1]), name)
    # k = n Wk,  v = n Wv
    dn = matmul(dk, Wk, transpose_b=True, precision=precision)
    matmul(dv, Wv, transpose_b=True, residual=dn, out=dn, precision=precision)
    # q = n[:, S-T:] Wq
    part = last(dn, T)
    matmul(dq, Wq, transpose_b=True, residual=part, out=part, precision=precision)
    pairs = (last(n, T), dq), (n, dk), (n, dv)
    dWq, dWk, dWv = (matmul(x, dout, transpose_a=True, precision=precision) for x, dout in pairs)
    return dn, dWq, dWk, dWv
