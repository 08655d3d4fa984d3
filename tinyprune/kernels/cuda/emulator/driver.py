"""A GPU that is not there: executes compiled kernels as PTX and has the methods of `device.driver.Driver`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels.cuda.device.driver import Packed, Three
from tinyprune.kernels.cuda.emulator import machine
from tinyprune.kernels.cuda.emulator.program import Program

FIRST = 2**16  # the lowest address; no pointer is 0
ALIGNED = 512  # bytes, as cuMemAlloc
BUDGET = 10**9  # branches of a launch


@dataclass(eq=False)
class Emulator:
    """Executes kernels on this machine's processor, and raises an error for every access that a GPU would get wrong.

    Attributes:
        capability: of the GPU that kernels are compiled for, such as (9, 0).
        size: bytes of its memory.
        fused: whether products and sums become multiply-adds, as NVIDIA's assembler makes them in places.
        backwards: whether the last blocks, and the last warps of each, come first.
        counted: whether requests of memory are counted.
    """

    capability: tuple[int, int] = (9, 0)
    size: int = 2**30
    fused: bool = False
    backwards: bool = False
    counted: bool = False

    def __post_init__(self) -> None:
        self.memory = np.zeros(self.size, np.uint8)  # pages that are not touched take no room
        self.words = np.zeros(self.size // 4, machine.WORD)
        self.phase = np.zeros(1, np.int64)
        self.top = FIRST
        self.idle: dict[int, list[int]] = {}
        self.sizes: dict[int, int] = {}
        self.kernels: dict[tuple[str, bytes, bool], Kernel] = {}

    def allocate(self, size: int) -> int:
        """Return the address of `size` new bytes."""
        room = -(-max(size, 1) // ALIGNED) * ALIGNED
        if self.idle.get(room):
            address = self.idle[room].pop()
        else:
            address = self.top
            self.top += room + ALIGNED
            if self.top > len(self.memory):
                raise MemoryError("the emulated GPU has none left")
        self.sizes[address] = room
        return address

    def free(self, address: int) -> None:
        """Free them."""
        room = self.sizes.pop(address)
        self.end(address, room)
        self.idle.setdefault(room, []).append(address)

    def begin(self, address: int, size: int) -> None:
        """An array begins to use these bytes; nothing has been written to them."""
        self.memory[address : address + size] = 255  # as floats NaN
        self.words[address // 4 : (address + size + 3) // 4] = (0, 0, 0, 0, 1, 0)

    def end(self, address: int, size: int) -> None:
        """No array uses these bytes any more."""
        self.words[address // 4 : (address + size + 3) // 4] = (0, 0, 0, 0, 0, 0)

    def check(self, address: int, size: int, what: str, read: bool) -> None:
        """Raise TinypruneError unless these bytes are an array's and, if they are `read`, have been written."""
        words = self.words[address // 4 : (address + size + 3) // 4]
        if not words["live"].all() or (read and not words["set"].all()):
            raise TinypruneError(f"{what} {size} bytes at {address:#x}, which no array has or nothing has written")

    def write(self, address: int, values: NDArray) -> None:
        """Copy an array to the GPU's memory."""
        self.check(address, values.nbytes, "a copy to the GPU writes", False)
        self.memory[address : address + values.nbytes] = values.reshape(-1).view(np.uint8)
        self.words["set"][address // 4 : (address + values.nbytes + 3) // 4] = 1

    def read(self, address: int, values: NDArray) -> None:
        """Copy from the GPU's memory."""
        self.check(address, values.nbytes, "a copy from the GPU reads", False)  # with a view's gaps
        values.reshape(-1).view(np.uint8)[:] = self.memory[address : address + values.nbytes]

    def begin_read(self, numbers: Sequence[tuple[int, np.dtype]]) -> Callable[[], list[float]]:
        """Copy numbers to main memory; return a function that returns them."""
        found = []
        for address, dtype in numbers:
            self.check(address, dtype.itemsize, "a copy from the GPU reads", True)
            found.append(float(self.memory[address : address + dtype.itemsize].view(dtype)[0]))
        return lambda: found

    def synchronize(self) -> None:
        """Wait for nothing: a launch returns when it is done."""

    def load(self, compiled: Callable[..., tuple[str, bytes]]) -> Kernel:
        """Parse the kernel whose symbol and PTX `compiled` returns for the GPU's capability."""
        symbol, text = compiled(self.capability, ptx=True)
        key = symbol, text, self.fused
        if key not in self.kernels:
            self.kernels[key] = Kernel(text.decode(), symbol, self.fused)
        return self.kernels[key]

    def launch(self, kernel: Kernel, grid: Three, threads: Three, arguments: Packed, name: str) -> None:
        """Run a kernel to its end.

        Raises:
            TinypruneError: if it does something that a GPU would get wrong; says where.
        """
        kernel.name = name
        kernel.launches += 1
        m = machine.Machine(self.memory, self.words, kernel.found, kernel.counts, self.phase)
        shape = (np.array(grid, np.int64), np.array(threads, np.int64))
        options = self.backwards, self.counted, np.array([BUDGET])
        machine.launch(m, kernel.code, kernel.given, kernel.sizes, arguments.buffer, *shape, *options)
        if kernel.found["times"].any():
            said = kernel.explained()
            kernel.found[:] = np.zeros((), machine.FOUND)
            raise TinypruneError(said)


class Kernel(Program):
    """A parsed kernel, what `machine.launch` is given of it, and what its launches found and counted."""

    def __init__(self, text: str, name: str, fused: bool) -> None:
        super().__init__(text, name, fused)
        numbers = [*self.constants], np.array([*self.constants.values()], np.uint64).view(np.int64), self.specials
        self.given = (*(np.array(x, np.int64) for x in numbers), np.array(self.arrays, np.int64).reshape(-1, 2))
        self.sizes = self.registers, self.predicates, self.shared
        self.found = np.zeros((len(machine.WRONG), len(self.code)), machine.FOUND)
        self.counts = np.zeros(len(self.code), machine.COUNT)
        self.launches = 0

    def explained(self) -> str:
        """Return one line for each kind of fault at each instruction that has it."""
        said = []
        for wrong, place in zip(*np.nonzero(self.found["times"]), strict=True):
            found, where = self.found[wrong, place], self.lines[place] or f"instruction {place}"
            thread = f"thread {found['thread']} of block {tuple(map(int, found['block']))}"
            said.append(
                f"{self.name}, {where}, `{self.text[place]}`: {machine.WRONG[wrong]}; first {thread}, address "
                f"{int(found['address']):#x}, {found['times']} times"
            )
        return "\n".join(said)


OPTIONS = "TINYPRUNE_EMULATOR"  # such as "8.0 fused backwards counted"


@cache
def emulator() -> Emulator:
    """Return the emulator of this process, with what $TINYPRUNE_EMULATOR says; raises UsageError for other words."""
    options: dict[str, Any] = {}
    for word in os.environ.get(OPTIONS, "").split():
        if word in ("fused", "backwards", "counted"):
            options[word] = True
        elif re.fullmatch(r"\d+\.\d", word):
            options["capability"] = tuple(map(int, word.split(".")))
        else:
            raise UsageError(f"${OPTIONS} must hold a capability such as 9.0, fused, backwards, counted; got {word!r}")
    return Emulator(**options)
