"""The products that operations are made of, on a GPU: see `tinyprune.ops.products`.

They check their arguments, plan how to compute a product, and launch the kernels of `product`. Rows at equal distances,
in groups or not, are read in place, and so are those of a transposed view. A plan depends on shapes and strides alone,
so that a product has the same bits each time.

precision: "float32", or "tf32" for tensor cores, see `tensor_cores`; sums are float32 either way.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.arguments import check_floats, contiguous
from tinyprune.kernels.cuda.device.array import DeviceArray, copied, empty
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.jit import blocks
from tinyprune.kernels.cuda.device.together import launch_together
from tinyprune.kernels.cuda.products import arithmetic
from tinyprune.kernels.cuda.products.product import ALONE, ARITHMETICS, PRODUCTS, TILES
from tinyprune.kernels.cuda.products.tensor_cores import EARLIEST
from tinyprune.kernels.cuda.sums import sum_all
from tinyprune.kernels.rows import Rows, in_groups, rows_of
from tinyprune.ops.products import check_matmul, check_rows, check_weight_gradient

BLOCKS = 256  # about as many as run at once on the largest GPUs: two on each of 132 multiprocessors
ENOUGH = 128  # blocks; with so many, smaller tiles are not worthwhile
SHORTEST = 256  # numbers along k that are worth a slot


class Task(NamedTuple):
    """A product that is to be computed: op(a) · b, finished, into `out`."""

    a: DeviceArray
    b: DeviceArray
    out: DeviceArray  # a matrix
    result: DeviceArray  # the same numbers, in the shape that the caller gets
    transpose_a: bool = False
    bias: DeviceArray | None = None
    added: DeviceArray | None = None  # the residual, or what `where` is; it lies in memory as `out` does
    finish: int = 0  # what is done to a sum, see `arithmetic.finished`


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
    product = prepared(a, b, bias, relu, where, onto)
    launch([product], precision)
    return product.result


def matmuls(
    products: Iterable[tuple[DeviceArray, DeviceArray, DeviceArray | None]], *, precision: str = "float32"
) -> list[DeviceArray]:
    """Compute a · b + bias of each (a, b, bias), in as few launches as possible: `ops.matmuls`. Raises as `matmul`."""
    made = [prepared(*product) for product in products]
    launch(made, precision)
    return [product.result for product in made]


def prepared(
    a: DeviceArray,
    b: DeviceArray,
    bias: DeviceArray | None,
    relu: bool = False,
    where: DeviceArray | None = None,
    onto: DeviceArray | None = None,
) -> Task:
    """Check the arguments of `matmul`, and make the array of its result."""
    given = {name: x for name, x in (("a", a), ("b", b), ("bias", bias), ("where", where)) if x is not None}
    check_floats(**given, **({} if onto is None else {"onto": onto}))
    check_matmul(a, b, bias, relu, where, onto)
    finish = arithmetic.BIAS * (bias is not None) | arithmetic.WHERE * (where is not None) | arithmetic.RELU * relu
    bias, where = (x if x is None else contiguous(x) for x in (bias, where))
    if onto is None:
        out = empty((*a.shape[:-1], b.shape[1]))
        return Task(matrix(a), b, matrix(out), out, bias=bias, added=where, finish=finish)
    check_onto(onto, **given)
    rows = matrix(onto)
    return Task(matrix(a), b, rows, onto, bias=bias, added=rows, finish=finish | arithmetic.RESIDUAL)


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
        out = empty((x.shape[-1], dout.shape[-1]))
        products.append(Task(x, dout, out, out, transpose_a=True))
    for x in summed:
        check_floats(x=x)
        check_rows("x", x)
        sums.append((contiguous(x), math.prod(x.shape[:-1]), empty(x.shape[-1])))
    launch(products, precision, sums)
    return [product.result for product in products], [out for _, _, out in sums]


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


class Form(NamedTuple):
    """A plan needs to know this much of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in entries
    first: int  # where it begins in its memory, modulo 4


class Plan(NamedTuple):
    """How to compute a product of arrays of certain forms."""

    kernel: tuple[int, bool, bool]  # key in PRODUCTS without the precision
    grid: int | tuple[int, ...]  # blocks
    numbers: tuple[int, ...]  # for the kernel
    slots: int  # of out: the sum along k is split into so many, which are added afterwards


def form(x: DeviceArray) -> Form:
    """Describe an array."""
    return Form(x.shape, x.strides, x.first % 4)


def aligned(rows: Rows, first: int) -> bool:
    """Return whether all rows begin on a multiple of 4, the first at `first`. (A group is a number of rows long.)"""
    return not (first % 4 or rows.row % 4)


def as_it_lies(x: DeviceArray, transpose: bool) -> tuple[DeviceArray, bool]:
    """Return an array whose rows a kernel can read, and whether to transpose it.

    A transposed view becomes its matrix, to be transposed once more. Other views are copied.
    """
    if rows_of(x.shape, x.strides):
        return x, transpose
    if x.ndim == 2 and rows_of(x.shape[::-1], x.strides[::-1]):
        return x.T, not transpose
    return copied(x), transpose


@lru_cache(maxsize=4096)
def plan(a: Form, transpose_a: bool, b: Form, transpose_b: bool, finish: int, out: Form) -> Plan | None:
    """Plan a product of checked arguments, once for many calls. Return None if `a` has to be copied first.

    Kernels can read the rows of a, b and out; a and b are not both to be transposed. What is added lies as out does.
    """
    M, N = math.prod(out.shape[:-1]), out.shape[-1]
    K = math.prod(a.shape[:-1]) if transpose_a else a.shape[-1]
    of_a, of_b, of_out = (rows_of(x.shape, x.strides) for x in (a, b, out))
    # Two matrices whose rows are read side by side need the same groups; if one has them, the other is split likewise.
    rows, beside = (K, of_b) if transpose_a else (M, of_out)
    of_a, beside = in_groups(rows, of_a, beside)
    if of_a.groups != beside.groups:
        return None
    of_b, of_out = (beside, of_out) if transpose_a else (of_b, beside)
    group_rows = max(rows // of_a.groups, 1)
    tile, slots = division(M, N, K, whole=finish > 0 or not transpose_a)
    depth = arithmetic.STRIP // tile
    slot_depth = max(blocks(K, slots * depth), 1) * depth
    slots = max(blocks(K, slot_depth), 1)
    if slots > 1:
        of_out, out = Rows(1, 0, N), out._replace(first=0)  # of the slots
    flags = arithmetic.ALIGNED_A * aligned(of_a, a.first) | arithmetic.ALIGNED_B * aligned(of_b, b.first)
    flags |= arithmetic.ALIGNED_OUT * aligned(of_out, out.first)
    across, down = blocks(N, tile), blocks(M, tile)
    strides = of_a.group, of_a.row, of_b.group, of_b.row, of_out.group, of_out.row
    numbers = (M, N, K, slot_depth, group_rows, *strides, finish, flags, across, down)
    grid = (across, down, slots) if tile == ALONE else across * down * slots
    return Plan((tile, not transpose_a, transpose_b), grid, numbers, slots)


def division(M: int, N: int, K: int, whole: bool = False) -> tuple[int, int]:
    """Choose the size of tile, and the slots for the sum along k, from the shapes alone: so results are reproducible.

    whole: whether there is to be one slot: with more, what comes right after the product would take another launch.
    """
    for tile in TILES:
        tiles = blocks(M, tile) * blocks(N, tile)
        slots = 1 if whole else max(min(BLOCKS // max(tiles, 1), K // SHORTEST), 1)
        if tiles * slots >= ENOUGH:
            break
    return tile, slots


def launch(products: Sequence[Task], precision: str, sums: Sequence[tuple] = ()) -> None:
    """Compute op(a) · b, finished, into `out` of each product, those of one kernel together. See `arithmetic`.

    Args:
        products: what is computed.
        precision: of all.
        sums: what else is summed over its rows, see `sum_all`, in the launch that sums the slots of products.

    Raises UsageError unless this GPU can compute products in this precision.
    """
    if precision not in ARITHMETICS:
        raise UsageError(f"precision must be one of {', '.join(ARITHMETICS)}; got {precision!r}")
    if precision == "tf32" and driver().capability < EARLIEST:
        found = ".".join(map(str, driver().capability))
        raise UsageError(f"tf32 takes a GPU of compute capability 8.0 or later, and this one has {found}: use float32")
    summed = [*sums]
    together: dict[tuple, list[tuple]] = {}
    for product in products:
        a, transpose_a = as_it_lies(product.a, product.transpose_a)
        b, transpose_b = as_it_lies(product.b, False)
        if transpose_a and transpose_b:
            a, transpose_a = copied(a.T), False
        options = transpose_a, form(b), transpose_b, product.finish, form(product.out)
        p = plan(form(a), *options) or plan(form(a := copied(a)), *options)
        out = product.out
        if p.slots > 1:
            out = empty((p.slots, *product.out.shape))
            summed.append((out, p.slots, product.out))
        arrays = a, b, product.bias, product.added, out
        together.setdefault(p.kernel, []).append((p.grid, (*arrays, *p.numbers)))
    for key, some in together.items():
        launch_together(PRODUCTS[precision, *key], some)
    sum_all(summed)
