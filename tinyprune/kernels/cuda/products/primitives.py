"""The products that operations are made of, on a GPU: see `tinyprune.ops.products`.

They check their arguments, find out where rows lie in memory, and launch the kernels of `product` that
`plans` chooses. Rows at equal distances, in groups or not, are read in place, and so are those of a transposed view.

precision: "float32", or "tf32" for tensor cores, see `tensor_cores`; sums are float32 either way.
"""

import math
from collections.abc import Iterable, Sequence

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.arguments import check_floats, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, copied, empty
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.together import launch_together
from tinyprune.kernels.cuda.products.arithmetic import BIAS, RELU, RESIDUAL, WHERE
from tinyprune.kernels.cuda.products.plans import as_it_lies, form, plan
from tinyprune.kernels.cuda.products.product import ARITHMETICS, PRODUCTS
from tinyprune.kernels.cuda.products.tensor_cores import EARLIEST
from tinyprune.kernels.cuda.sums import sum_all
from tinyprune.kernels.rows import rows_of
from tinyprune.ops.products import check_matmul, check_rows, check_weight_gradient


def matmul(
    a: DeviceArray,
    b: DeviceArray,
    *,
    bias: DeviceArray | None = None,
    relu: bool = False,
    where: DeviceArray | None = None,
    onto: DeviceArray | None = None,
    precision: str = "float32",
) -> DeviceArray:
    """Compute a · b, and what comes right after a product, before it is written: `ops.matmul` for float32.

    onto: rows at equal distances, as the last ones of each batch entry, that share no memory with other arguments.

    Raises:
        ValueError: if shapes do not fit together, an array is not float32 in the GPU's memory, or `onto` does not
            consist of rows or shares memory with an argument.
        UsageError: if the precision does not exist, or not on this GPU.
    """
    product, out = prepared(a, b, bias, relu, where, onto)
    launch([product], precision)
    return out


def matmuls(
    products: Iterable[tuple[DeviceArray, DeviceArray, DeviceArray | None]], *, precision: str = "float32"
) -> list[DeviceArray]:
    """Compute a · b + bias of each (a, b, bias), in as few launches as possible: `ops.matmuls`. Raises as `matmul`."""
    made = [prepared(*product) for product in products]
    launch([product for product, _ in made], precision)
    return [out for _, out in made]


def prepared(
    a: DeviceArray,
    b: DeviceArray,
    bias: DeviceArray | None,
    relu: bool = False,
    where: DeviceArray | None = None,
    onto: DeviceArray | None = None,
) -> tuple[tuple, DeviceArray]:
    """Check the arguments of `matmul`; return what `launch` needs, and the result's array."""
    given = {name: x for name, x in (("a", a), ("b", b), ("bias", bias), ("where", where)) if x is not None}
    check_floats(**given, **({} if onto is None else {"onto": onto}))
    check_matmul(a, b, bias, relu, where, onto)
    finish = BIAS * (bias is not None) | WHERE * (where is not None) | RELU * relu
    bias, where = (x if x is None else contiguous(x) for x in (bias, where))
    if onto is None:
        out = empty((*a.shape[:-1], b.shape[1]))
        return (matrix(a), b, False, bias, where, matrix(out), finish), out
    check_onto(onto, **given)
    rows = matrix(onto)
    return (matrix(a), b, False, bias, rows, rows, finish | RESIDUAL), onto


def weight_gradient(x: DeviceArray, dout: DeviceArray, *, precision: str = "float32") -> DeviceArray:
    """Compute xᵀ · dout over all rows: `ops.weight_gradient` for float32. Raises as `matmul`."""
    return weight_gradients([(x, dout)], [], precision=precision)[0][0]


def column_sums(x: DeviceArray) -> DeviceArray:
    """Sum over all rows, (..., C) → (C,): `ops.column_sums` for float32."""
    return weight_gradients([], [x])[1][0]


def weight_gradients(
    pairs: Iterable[tuple[DeviceArray, DeviceArray]], summed: Iterable[DeviceArray], *, precision: str = "float32"
) -> tuple[list[DeviceArray], list[DeviceArray]]:
    """Compute xᵀ · dout of each pair, and the `column_sums` of each of `summed`, in as few launches as possible.

    As `ops.weight_gradients`, for float32. Raises as `matmul`.
    """
    products, sums = [], []
    for x, dout in pairs:
        check_floats(x=x, dout=dout)
        check_weight_gradient(x, dout)
        x, dout = matrix(x), matrix(dout)
        if not (rows_of(x.shape, x.strides) and rows_of(dout.shape, dout.strides)):
            x, dout = copied(x), copied(dout)
        products.append((x, dout, True, None, None, empty((x.shape[-1], dout.shape[-1])), 0))
    for x in summed:
        check_floats(x=x)
        check_rows("x", x)
        sums.append((contiguous(x), math.prod(x.shape[:-1]), empty(x.shape[-1])))
    launch(products, precision, sums)
    return [p[5] for p in products], [out for _, _, out in sums]


def check_onto(onto: DeviceArray, **read: DeviceArray) -> None:
    """Raise ValueError unless a product can be added to `onto` while these are read."""
    if rows_of(onto.shape, onto.strides) is None:
        raise ValueError(f"onto must consist of rows of numbers side by side, got strides {onto.strides}")
    for name, x in read.items():
        # whether they overlap
        if x.storage is onto.storage and x.first < onto.first + onto.span and onto.first < x.first + x.span:
            raise ValueError(f"onto must not lie in the memory of {name}, which is read while onto is written")


def matrix(x: DeviceArray) -> DeviceArray:
    """Return a vector as a matrix of one row, and any other array as it is."""
    return x if x.ndim > 1 else DeviceArray(x.storage, x.first, (1, *x.shape), (x.size, *x.strides), x.dtype)


def launch(products: Sequence[tuple], precision: str, sums: Sequence[tuple] = ()) -> None:
    """Compute op(a) · b, finished, into `out` of each product, those of one kernel together. See `arithmetic`.

    Args:
        products: a, b, whether a is transposed, bias, what is added and lies in memory as `out` does, out, finish.
        precision: of all.
        sums: what else is summed over its rows, see `sum_all`, in the launch that sums the parts of products.

    Raises UsageError unless this GPU can compute products in this precision.
    """
    if precision not in ARITHMETICS:
        raise UsageError(f"precision must be one of {', '.join(ARITHMETICS)}; got {precision!r}")
    if precision == "tf32" and driver().capability < EARLIEST:
        found = ".".join(map(str, driver().capability))
        raise UsageError(f"tf32 takes a GPU of compute capability 8.0 or later, and this one has {found}: use float32")
    slots: list[tuple] = []
    together: dict[tuple, list[tuple]] = {}
    for a, b, transpose_a, bias, added, out, finish in products:
        a, transpose_a = as_it_lies(a, transpose_a)
        b, transpose_b = as_it_lies(b, False)
        if transpose_a and transpose_b:
            a, transpose_a = copied(a.T), False
        options = transpose_a, form(b), transpose_b, finish, form(out)
        p = plan(form(a), *options) or plan(form(a := copied(a)), *options)
        arrays = a, b, bias, added, out
        if p.parts > 1:
            parts = empty((p.parts, *out.shape))
            arrays = a, b, None, None, parts
            slots.append((parts, p.parts, out))
        together.setdefault(p.kernel, []).append((p.grid, (*arrays, *p.numbers)))
    for key, some in together.items():
        launch_together(PRODUCTS[precision, *key], some)
    sum_all([*sums, *slots])
