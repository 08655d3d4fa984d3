"""Several problems of one kind in one launch: small ones take less time than a launch does.

A kernel takes so many NamedTuples, whose last field is `first`: the first of the launch's blocks that works on it.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from tinyprune.kernels.cuda.device.jit import Kernel, device

TOGETHER = 4  # arguments of such a kernel
NO_BLOCK = 2**31 - 1  # in place of `first`, for arguments that are left over


@device
def of_block(block, p, p1, p2, p3):
    """Return the problem that a block works on: the last whose first block is not after it."""
    if block >= p1.first:
        p = p1
    if block >= p2.first:
        p = p2
    return p3 if block >= p3.first else p


def launch_together(of: Kernel, problems: Sequence[tuple[Any, tuple[Any, ...]]]) -> None:
    """Launch a kernel for several problems, in as few launches as possible: each takes one for each argument.

    Args:
        of: the kernel.
        problems: of each the blocks, a number unless the kernel takes one problem only, and its fields but `first`.
    """
    most = len(of.arguments)
    left_over = (*(len(of.arguments[0].types) - 1) * (0,), NO_BLOCK)
    for begin in range(0, len(problems), most):
        some = problems[begin : begin + most]
        *firsts, grid = accumulate((count for count, _ in some), initial=0) if most > 1 else (0, some[0][0])
        given = [(*fields, first) for (_, fields), first in zip(some, firsts, strict=True)]
        of(grid, *given, *(most - len(given)) * (left_over,))
