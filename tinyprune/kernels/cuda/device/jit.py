"""Compile and launch kernels.

    @kernel(floats, floats, int32, threads=256)
    def double(x, out, n):
        i = cuda.grid(1)
        if i < n:
            out[i] = x[i] + x[i]

    double(blocks(n, 256), x, out, n)         x and out are `DeviceArray`s

A kernel gets each array as a pointer to its first entry. Indexing is then one addition, where Numba's own arrays test
for negative indices, and a launch passes 8 bytes an array. Scalars have 32 bits: a single float64 would make Numba
compute in float64, which most GPUs do at a thirty-second of the speed or less. So every kernel declares its types.

`cuda.compiled` translates a kernel to the GPU's machine code, which stays on disk. A launch packs all arguments into a
buffer with one call of `struct` and hands it to the driver; Numba's own launches convert the arguments one by one.

Without a GPU `cuda.emulator` executes them, from PTX, which the linker makes in place of the GPU's own code.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, get_type_hints

from numba import cuda, float32, float64, int32, types, uint32, void

from tinyprune.io.files import cache_directory
from tinyprune.kernels.cuda.compiled import code_of
from tinyprune.kernels.cuda.device.driver import Packed, driver

COMPILING = "compiling kernels for the GPU, once on this machine"
COMPILED = f"kept in {cache_directory() / 'cubins'}, the next start needs none"
# how struct packs an argument; addresses have 8 bytes, and each lies on a multiple of its size as in C
FORMATS = {float32: "f", int32: "i", uint32: "I", float64: "d"}

floats = types.CPointer(float32)
ints = types.CPointer(int32)


def device(function: Callable) -> Callable:
    """Make a function that kernels can call; it may be plain Python that the CPU's kernels share."""
    return cuda.jit(device=True)(function)


@dataclass(eq=False)
class Kernel:
    """A function for the GPU, and how it is compiled and launched.

    Attributes:
        function: the Python function.
        arguments: Numba's types of its arguments, or NamedTuples, which become such types, see `numba_type`.
        threads: of a block, along x, or along x and y.
        float64: whether it computes in float64 on purpose; in other kernels a test refuses that.
        resident: blocks that a multiprocessor must have room for at a time, which limits the registers that the
            compiler may use; 0 for no limit.
        tiles: sizes of its tiles, for kernels that come in several.
    """

    function: Callable
    arguments: Sequence[Any]
    threads: int | tuple[int, int]
    float64: bool = False
    resident: int = 0
    tiles: Any = None

    def __post_init__(self) -> None:
        self.arguments = [*map(numba_type, self.arguments)]
        # of each argument, whether it is a tuple, whose entries are packed one by one
        self.spread = [isinstance(kind, types.BaseTuple) for kind in self.arguments]
        self.signature = void(*self.arguments)
        self.block = along_xyz(self.threads)
        self.packing = struct.Struct("@" + "".join(map(format_of, self.arguments)))
        self.packed = Packed(self.packing.size)
        self.__doc__, self.__name__ = self.function.__doc__, self.function.__name__

    @cached_property
    def compiled(self) -> Any:
        """Load it, after compiling it unless a file has it.

        Raises UsageError if toolkit and GPU do not fit together.
        """
        return driver().load(partial(code_of, self))

    def __call__(self, grid: int | tuple[int, ...], *arguments: Any) -> None:
        """Launch it, and return before it is done.

        Args:
            grid: blocks along x, or along x, y and z; with 0 along some axis nothing is launched.
            arguments: contiguous `DeviceArray`s, None for an array that the kernel does not read, numbers, and tuples
                of these.

        Raises:
            TinypruneError, MemoryError: if the GPU refuses, or an earlier kernel has failed.
        """
        if 0 in along_xyz(grid):
            return
        given: list[Any] = []
        for x, spread in zip(arguments, self.spread, strict=True):
            if spread:
                given.extend(map(pointer_of, x))
            else:
                given.append(pointer_of(x))
        self.packing.pack_into(self.packed.buffer, 0, *given)
        driver().launch(self.compiled, along_xyz(grid), self.block, self.packed, self.__name__)


def pointer_of(x: Any) -> Any:
    """Return what a kernel gets for an argument: of an array its address, 0 for None, and anything else itself."""
    return 0 if x is None else getattr(x, "pointer", x)


def along_xyz(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return sizes along x, y and z: 1 along axes that are not given."""
    return (sizes, 1, 1) if isinstance(sizes, int) else (*sizes, 1, 1)[:3]


def format_of(kind: Any) -> str:
    """Return how struct packs an argument of this type."""
    return "".join(map(format_of, kind.types)) if isinstance(kind, types.BaseTuple) else FORMATS.get(kind, "P")


def numba_type(kind: Any) -> Any:
    """Return Numba's type of an argument: of a NamedTuple by its annotations, and of one of its arrays `floats`."""
    if not hasattr(kind, "_fields"):
        return kind
    scalars = {int: int32, float: float32}
    return types.NamedTuple([scalars.get(field, floats) for field in get_type_hints(kind).values()], kind)


KERNELS: list[Kernel] = []  # all of them, for tests


def kernel(*arguments: Any, name: str | None = None, **options: Any) -> Callable[[Callable], Kernel]:
    """Make a kernel from a function with arguments of these types. Variants need different names.

    options: `threads`, and what else `Kernel` is told.
    """

    def made(function: Callable) -> Kernel:
        function.__name__ = name or function.__name__
        KERNELS.append(Kernel(function, arguments, **options))
        return KERNELS[-1]

    return made


def blocks(size: int, each: int) -> int:
    """Return how many blocks of `each` cover `size`; the last may be partly empty."""
    return -(-size // each)
