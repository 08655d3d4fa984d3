"""safetensors files as the Hub has them, read tensor by tensor.

The file is 8 bytes with the length of a header, the header, JSON with each tensor's dtype, shape and offsets, and the
tensors' bytes. The package safetensors checks it; the tensors are read here because it has no bfloat16 for NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from tinyprune.errors import CheckpointError
from tinyprune.pretrained.stored import OTHERWISE, StoredTensor, check_memory
from tinyprune.training import checkpoints

# The stored numbers that are read: how bytes become numbers that fit into float32.
WIDEN: dict[str, Callable[[NDArray[np.uint8]], NDArray]] = {
    "F32": lambda data: data.view("<f4"),
    "F16": lambda data: data.view("<f2"),
    # bfloat16 is the upper half of float32
    "BF16": lambda data: (data.view("<u2").astype(np.uint32) << 16).view(np.float32),
}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name; one whose dtype is not in `WIDEN` has no `load`.

    Raises CheckpointError unless the file is whole, UsageError if it is larger than this machine's memory.
    """
    try:
        check_memory(path, path.stat().st_size)
        header, data = checkpoints.read_header(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the folder") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated, altered or no safetensors file ({error}); {OTHERWISE}") from error

    def load(dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> NDArray:
        return WIDEN[dtype](data[slice(*data_offsets)]).reshape(shape)

    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            tuple(entry["shape"]), entry["dtype"], functools.partial(load, **entry) if entry["dtype"] in WIDEN else None
        )
        for name, entry in header.items()
    }
