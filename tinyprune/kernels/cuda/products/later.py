"""Products and sums that wait: gradients of parameters, computed together when somebody reads the first of them.

Nobody needs them before backward is done, and a launch takes Python longer than a small array takes the GPU. What
`weight_gradient` and `sum_later` return is an array like any other. As soon as a kernel or a copy asks where one of
them lies, all are computed: the products, a launch for each kind of tiles; then sums, of products' slots as well, a
launch for each level. What they read is kept until then, and computed before anyone writes over it.
"""

from functools import lru_cache

from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.many import Launch, laid_out, launch_all
from tinyprune.kernels.cuda.device.memory import Lease
from tinyprune.kernels.cuda.parts.copies import copied
from tinyprune.kernels.cuda.parts.sums import grid_of, run_sums
from tinyprune.kernels.cuda.products.matmul import Ready, check_precision, ready, rows_of, together

ROOM = 2**27  # bytes that may be kept; beyond them a launch is short compared with its work
PRODUCTS: list[tuple[str, Ready]] = []
SUMS: list[tuple[DeviceArray, DeviceArray]] = []  # matrices, and where their sums go
KEPT: dict[Lease, int] = {}  # and how many bytes


def weight_gradient(x: DeviceArray, dout: DeviceArray, precision: str = "float32") -> DeviceArray:
    """Compute xᵀ · dout over all rows, of x (..., M) and dout (..., N), when somebody reads it."""
    check_precision(precision)
    if not (rows_of(x.shape, x.strides) and rows_of(dout.shape, dout.strides)):
        x, dout = copied(x), copied(dout)
    product = ready(x, dout, transpose_a=True)
    wait(product.out, product.a, product.b)
    PRODUCTS.append((precision, product))
    return product.out


def sum_later(x: DeviceArray) -> DeviceArray:
    """Sum a contiguous matrix (R, C) over its rows: Σ_r x[r, c], (C,), when somebody reads it; zeros without rows."""
    out = empty(x.shape[1])
    wait(out, x)
    SUMS.append((x, out))
    return out


def wait(out: DeviceArray, *reads: DeviceArray) -> None:
    """Let whoever reads `out`, or writes to what it is computed from, wait for it."""
    if any(x.lease.due for x in reads) or sum(KEPT.values()) > ROOM:
        finish()
    out.lease.due = finish
    for x in reads:
        x.lease.read_later = finish
        KEPT[x.lease] = x.lease.size


def finish() -> None:
    """Compute all that waits. If that fails, it goes on waiting."""
    outs = [product.out.lease for _, product in PRODUCTS] + [out.lease for _, out in SUMS]
    for lease in outs:
        lease.due = None
    try:
        launch_all(planned())
    except BaseException:
        for lease in outs:
            lease.due = finish
        raise
    for lease in KEPT:
        lease.read_later = None
    for waiting in (PRODUCTS, SUMS, KEPT):
        waiting.clear()


def planned() -> list[Launch]:
    """Plan the launches for all that waits."""
    launches, sums = [], list(SUMS)
    kinds: dict[tuple, list[Ready]] = {}
    for precision, product in PRODUCTS:
        some = kinds.setdefault((precision, *product.plan.kernel), [])
        some.append(product)
        if product.plan.parts > 1:
            slots = empty((product.plan.parts, product.out.size))
            some[-1] = product._replace(out=slots)
            sums.append((slots, product.out))
    launches = [together(key, some) for key, some in kinds.items()]
    while sums:
        blocks, table, runs = table_of_shapes(tuple(x.shape for x, _ in sums))
        to = [out if n == 1 else empty((n, out.size)) for n, (_, out) in zip(runs, sums, strict=True)]
        arrays = [array for (x, _), out in zip(sums, to, strict=True) for array in (x, out)]
        launches.append(Launch(run_sums, table, len(sums), blocks, arrays))
        sums = [(x, out) for x, (_, out) in zip(to, sums, strict=True) if x is not out]
    return launches


@lru_cache(256)
def table_of_shapes(shapes: tuple[tuple[int, int], ...]) -> tuple[int, DeviceArray, list[int]]:
    """Return how many blocks sum matrices of these shapes, the table for the kernel, and the runs of each matrix."""
    grids = [grid_of(R, C) for R, C in shapes]
    blocks, table = laid_out([(across * runs, *shape) for (across, runs), shape in zip(grids, shapes, strict=True)])
    return blocks, table, [runs for _, runs in grids]
