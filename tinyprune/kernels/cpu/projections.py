"""Projections: queries for the segment, keys and values for all of its context. See `tinyprune.ops.projections`.

    for b: q[b] = n[b, S−T:] · Wq;  k[b] = n[b] · Wk;  v[b] = n[b] · Wv

Products by `matmul`, which reads the last T rows of each batch entry where they lie, and adds up dn in place.
"""

from __future__ import annotations

from numpy.typing import NDArray

from tinyprune.kernels.cpu.arguments import check_floats, check_gradient
from tinyprune.kernels.cpu.matmul import matmul


def last(x: NDArray, T: int) -> NDArray:
    """x[:, S−T:] of (B, S, D): `x` itself if that is all of it, which is quicker than a view."""
    return x if x.shape[1] == T else x[:, x.shape[1] - T :]


def projections_forward(
    n: NDArray, Wq: NDArray, Wk: NDArray, Wv: NDArray, T: int
) -> tuple[tuple[NDArray, NDArray, NDArray], tuple]:
    """Queries, keys and values: `ops.projections_forward` for float32 and float64."""
    check_floats(n=n, Wq=Wq, Wk=Wk, Wv=Wv)
    if n.ndim != 3:
        raise ValueError(f"n must be (B, S, D), got {n.shape}")
    B, S, D = n.shape
    if Wq.ndim != 2 or len(Wq) != D:
        raise ValueError(f"Wq must have shape ({D}, H·Dh) to match n {n.shape}, got {Wq.shape}")
    for name, W in (("Wk", Wk), ("Wv", Wv)):
        if W.shape != Wq.shape:
            raise ValueError(f"{name} must have the shape of Wq, {Wq.shape}, got {W.shape}")
    if not 0 <= T <= S:
        raise ValueError(f"T must be at least 0 and at most {S} to match n {n.shape}, got {T}")
    return (matmul(last(n, T), Wq), matmul(n, Wk), matmul(n, Wv)), (n, Wq, Wk, Wv, T)


def projections_backward(
    dq: NDArray, dk: NDArray, dv: NDArray, cache: tuple
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Gradients of `projections_forward`, as `ops.projections_backward`."""
    n, Wq, Wk, Wv, T = cache
    B, S, _ = n.shape
    for dout, rows in ((dq, T), (dk, S), (dv, S)):
        check_gradient(dout, (B, rows, Wq.shape[1]), n.dtype)
    # k = n Wk,  v = n Wv
    dn = matmul(dk, Wk, transpose_b=True)
    matmul(dv, Wv, transpose_b=True, residual=dn, out=dn)
    # q = n[:, S-T:] Wq
    part = last(dn, T)
    matmul(dq, Wq, transpose_b=True, residual=part, out=part)
    dWq = matmul(last(n, T), dq, transpose_a=True)
    return dn, dWq, matmul(n, dk, transpose_a=True), matmul(n, dv, transpose_a=True)
