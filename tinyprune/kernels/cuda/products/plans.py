"""How a product of two matrices is computed: where their rows lie, which kernel, which tiles, how many parts of a sum.

A plan depends on shapes and strides alone, so that a product has the same bits each time.
"""

import math
from functools import lru_cache
from typing import NamedTuple

from tinyprune.kernels.cuda.device.array import DeviceArray, copied
from tinyprune.kernels.cuda.device.jit import blocks
from tinyprune.kernels.cuda.products.arithmetic import ALIGNED_A, ALIGNED_B, ALIGNED_OUT, STRIP
from tinyprune.kernels.cuda.products.product import ALONE, TILES
from tinyprune.kernels.rows import Rows, in_groups, rows_of

BLOCKS = 256  # about as many as run at once on the largest GPUs: two on each of 132 multiprocessors
ENOUGH = 128  # blocks; with so many, smaller tiles are not worthwhile
SHORTEST = 256  # numbers along k that are worth a slot


class Form(NamedTuple):
    """A plan needs to know this much of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in entries
    first: int  # where it begins in its block of memory, modulo 4


class Plan(NamedTuple):
    """How to compute a product of arrays of certain forms."""

    kernel: tuple[int, bool, bool]  # key in PRODUCTS without the precision
    grid: int | tuple[int, ...]  # blocks
    numbers: tuple[int, ...]  # for the kernel
    parts: int  # of the sum along k, each in a slot


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
    tile, parts = division(M, N, K, whole=not transpose_a)
    depth = STRIP // tile
    part = max(blocks(K, parts * depth), 1) * depth
    parts = max(blocks(K, part), 1)
    if parts > 1:
        of_out, out = Rows(1, 0, N), out._replace(first=0)  # of the slots
    flags = ALIGNED_A * aligned(of_a, a.first) | ALIGNED_B * aligned(of_b, b.first)
    flags |= ALIGNED_OUT * aligned(of_out, out.first)
    across, down = blocks(N, tile), blocks(M, tile)
    strides = of_a.group, of_a.row, of_b.group, of_b.row, of_out.group, of_out.row
    numbers = (M, N, K, part, group_rows, *strides, finish, flags, across, down)
    grid = (across, down, parts) if tile == ALONE else across * down * parts
    return Plan((tile, not transpose_a, transpose_b), grid, numbers, parts)


def division(M: int, N: int, K: int, whole: bool = False) -> tuple[int, int]:
    """Choose the size of tile, and the parts of the sum along k, from the shapes alone: so results are reproducible.

    whole: whether there is to be one part: with more, what comes right after the product would take another launch.
    """
    for tile in TILES:
        tiles = blocks(M, tile) * blocks(N, tile)
        parts = 1 if whole else max(min(BLOCKS // max(tiles, 1), K // SHORTEST), 1)
        if tiles * parts >= ENOUGH:
            break
    return tile, parts
