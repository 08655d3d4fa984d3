"""Projections: queries for the segment, keys and values for all of its context. See `tinyprune.ops.projections`.

    for b: q[b] = n[b, S−T:] · Wq;  k[b] = n[b] · Wk;  v[b] = n[b] · Wv

`matmul` reads the last T rows of each batch entry in place, and sums dn in place.

Times (ms, 2 threads), n (16, 256, 128), T 128, H·Dh 128 in float32: forward 1.4, NumPy 2.9; backward 3.2, NumPy 3.5.
"""

from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, check_gradient
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.ops.projections import check_arguments


def last(x: NDArray, T: int) -> NDArray:
    """Return x[:, S−T:] of (B, S, D), or `x` itself if T = S, which is quicker than a view."""
    return x if x.shape[1] == T else x[:, x.shape[1] - T :]


def projections_forward(
    n: NDArray, Wq: NDArray, Wk: NDArray, Wv: NDArray, T: int
) -> tuple[tuple[NDArray, NDArray, NDArray], tuple]:
    """Compute queries, keys and values, as `ops.projections_forward`; float32 or float64."""
    check_floats(n=n, Wq=Wq, Wk=Wk, Wv=Wv)
    check_arguments(n, Wq, Wk, Wv, T)
    return (matmul(last(n, T), Wq), matmul(n, Wk), matmul(n, Wv)), (n, Wq, Wk, Wv, T)


def projections_backward(
    dq: NDArray, dk: NDArray, dv: NDArray, cache: tuple
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return the gradients of `projections_forward`, as `ops.projections_backward`."""
    n, Wq, Wk, Wv, T = cache
    B, S, _ = n.shape
    for name, dout, rows in (("dq", dq, T), ("dk", dk, S), ("dv", dv, S)):
        check_gradient(dout, (B, rows, Wq.shape[1]), n.dtype, name)
    # k = n Wk,  v = n Wv
    dn = matmul(dk, Wk, transpose_b=True)
    matmul(dv, Wv, transpose_b=True, residual=dn, out=dn)
    # q = n[:, S-T:] Wq
    part = last(dn, T)
    matmul(dq, Wq, transpose_b=True, residual=part, out=part)
    dWq = matmul(last(n, T), dq, transpose_a=True)
    return dn, dWq, matmul(n, dk, transpose_a=True), matmul(n, dv, transpose_a=True)
