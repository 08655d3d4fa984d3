"""Tensors in a file, found from its header and read one by one as float32, so that no second copy is in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.machine import memory_bytes

OTHERWISE = "get the file again from where it comes from"


class StoredTensor(NamedTuple):
    """A vector or a matrix in a file."""

    shape: tuple[int, ...]
    dtype: str  # as the format calls it
    load: Callable[[], NDArray] | None  # returns its numbers, as floats of at most 32 bits; None: not known


class Source(NamedTuple):
    """Where a parameter of ours is in a file; `third` is 0, 1 or 2 if it is a third of the tensor's last axis."""

    tensor: str
    transposed: bool = False
    third: int | None = None

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor from which a parameter of `shape` is read."""
        shape = shape[::-1] if self.transposed else shape
        return shape if self.third is None else (*shape[:-1], 3 * shape[-1])


def check_memory(where: Path, size: int) -> None:
    """Raise UsageError if a file of `size` bytes, or the float32 numbers in it, exceed this machine's memory."""
    if size > (memory := memory_bytes()):
        has = f"and this machine has {memory / 1e9:.1f} GB; use a smaller model"
        raise UsageError(f"{where} needs {size / 1e9:.1f} GB of memory, {has}")


def check_tensors(
    where: Path,
    stored: Mapping[str, StoredTensor],
    sources: Mapping[str, Source],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Compare what a file has with what a model of its settings needs, before anything is loaded.

    Raises CheckpointError naming the first tensor that is missing, of another shape, or not needed; UsageError for
    numbers that cannot be read, or if the model, as float32, is larger than this machine's memory.
    """
    needed = {source.tensor: source.stored_shape(shapes[name]) for name, source in sources.items()}
    missing = [name for name in needed if name not in stored]
    unexpected = [name for name in stored if name not in needed]
    for problem, names in (("lacks", missing), ("has, beside what its settings need,", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise CheckpointError(f"{where} {problem} the tensor {names[0]}{more}; {OTHERWISE}")
    for name, shape in needed.items():
        if stored[name].shape != shape:
            found = f"has shape {stored[name].shape}, but the settings need {shape}"
            raise CheckpointError(f"{where}: tensor {name} {found}; {OTHERWISE}")
        if stored[name].load is None:
            found = f"is stored as {stored[name].dtype}, which cannot be read"
            raise UsageError(f"{where}: tensor {name} {found}; get the model as F32, F16 or BF16")
    check_memory(where, 4 * sum(map(math.prod, shapes.values())))


def read_parameters(
    tensors: Mapping[str, StoredTensor], sources: Mapping[str, Source], names: Iterable[str]
) -> dict[str, NDArray[np.float32]]:
    """Return the parameters `names`, contiguous in C order, from `sources` that `check_tensors` has found in order."""
    params = {}
    for name in names:
        tensor, transposed, third = sources[name]
        load = tensors[tensor].load
        assert load is not None
        x = load() if third is None else np.split(load(), 3, -1)[third]
        params[name] = np.array(x.T if transposed else x, np.float32, order="C")
    return params
