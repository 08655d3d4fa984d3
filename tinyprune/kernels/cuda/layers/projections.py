"""Projections: queries for the segment, keys and values for all of its context. See `tinyprune.ops.projections`.

`matmul` reads the last T rows of each batch entry in place, and adds to dn in place.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_gradient
from tinyprune.kernels.cuda.products.primitives import column_sums, matmul, weight_gradient
from tinyprune.ops.projections import check_arguments


def last(x: DeviceArray, T: int) -> DeviceArray:
    """Return the view x[:, S−T:] of (B, S, D)."""
    return x[:, x.shape[1] - T :]


def projections_forward(
    n: DeviceArray,
    Wq: DeviceArray,
    Wk: DeviceArray,
    Wv: DeviceArray,
    T: int,
    bq: DeviceArray | None = None,
    bk: DeviceArray | None = None,
    bv: DeviceArray | None = None,
    *,
    frozen: bool = False,
    precision: str = "float32",
) -> tuple[tuple[DeviceArray, DeviceArray, DeviceArray], tuple]:
    """Compute q, k and v: `ops.projections_forward` for float32. For `precision`, also of backward, see `matmul`."""
    biases = {name: b for name, b in (("bq", bq), ("bk", bk), ("bv", bv)) if b is not None}
    check_floats(n=n, Wq=Wq, Wk=Wk, Wv=Wv, **biases)
    check_arguments(n, Wq, Wk, Wv, T, bq, bk, bv)
    parts = (last(n, T), Wq, bq), (n, Wk, bk), (n, Wv, bv)
    q, k, v = (matmul(x, W, bias=b, precision=precision) for x, W, b in parts)
    with_gradient = set() if frozen else set(biases)
    return (q, k, v), (None if frozen else n, n.shape, Wq, Wk, Wv, T, with_gradient, precision)


def projections_backward(
    dq: DeviceArray, dk: DeviceArray, dv: DeviceArray, cache: tuple
) -> tuple[DeviceArray | None, ...]:
    """Gradients of `projections_forward` in argument order, as `ops.projections_backward`."""
    n, (B, S, _), Wq, Wk, Wv, T, biases, precision = cache
    for name, dout, W, rows in (("dq", dq, Wq, T), ("dk", dk, Wk, S), ("dv", dv, Wv, S)):
        check_gradient(dout, (B, rows, W.shape[1]), name)
    # k = n Wk + bk,  v = n Wv + bv
    dn = matmul(dk, Wk.T, precision=precision)
    matmul(dv, Wv.T, onto=dn, precision=precision)
    # q = n[:, S-T:] Wq + bq
    matmul(dq, Wq.T, onto=last(dn, T), precision=precision)
    dbq, dbk, dbv = (column_sums(dout) if b in biases else None for b, dout in (("bq", dq), ("bk", dk), ("bv", dv)))
    if n is None:
        return dn, None, None, None, dbq, dbk, dbv
    pairs = (last(n, T), dq), (n, dk), (n, dv)
    dWq, dWk, dWv = (weight_gradient(x, dout, precision=precision) for x, dout in pairs)
    return dn, dWq, dWk, dWv, dbq, dbk, dbv
