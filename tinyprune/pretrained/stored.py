"""Tensors in a file, found from its header and read one by one as float32, so that no second copy is in memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.io.files import read_error
from tinyprune.kernels.machine import memory_bytes


def damaged(said: str) -> CheckpointError:
    """Build the error for a file that is not whole, or does not fit the model's other files."""
    return CheckpointError(f"{said}; get the file again from where it comes from")


class StoredTensor(NamedTuple):
    """A vector or a matrix in a file."""

    shape: tuple[int, ...]
    dtype: str  # as the format calls it
    load: Callable[[], NDArray] | None  # returns floats of at most 32 bits; None: unknown


class Source(NamedTuple):
    """Where a parameter of ours is in a file; `third` is 0, 1 or 2 if it is a third of the tensor's last axis."""

    tensor: str
    transposed: bool = False
    third: int | None = None

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the tensor from which a parameter of `shape` is read."""
        if self.transposed:
            shape = shape[::-1]
        return shape if self.third is None else (*shape[:-1], 3 * shape[-1])


def check_memory(where: Path, size: int) -> None:
    """Raise UsageError if a file of `size` bytes, or the float32 numbers in it, exceed this machine's memory."""
    memory = memory_bytes()
    if size > memory:
        has = f"and this machine has {memory / 1e9:.1f} GB; use a smaller model"
        raise UsageError(f"{where} needs {size / 1e9:.1f} GB of memory, {has}")


@contextlib.contextmanager
def reading(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Check that a file fits into memory, and turn the `errors` of its package into a CheckpointError that names it."""
    try:
        check_memory(path, path.stat().st_size)
        yield
    except UsageError:
        raise
    except OSError as error:
        raise read_error(path, error) from error
    except errors as error:
        raise damaged(
            f"{path} is truncated, altered or no {kind} file, or newer than the package that reads it"
        ) from error


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
            raise damaged(f"{where} {problem} the tensor {names[0]}{more}")
    for name, shape in needed.items():
        if stored[name].shape != shape:
            found = f"has shape {stored[name].shape}, but the settings need {shape}"
            raise damaged(f"{where}: tensor {name} {found}")
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
        source = sources[name]
        load = tensors[source.tensor].load
        assert load is not None
        x = load()
        if source.third is not None:
            x = np.split(x, 3, -1)[source.third]
        if source.transposed:
            x = x.T
        params[name] = np.array(x, np.float32, order="C")
    return params
