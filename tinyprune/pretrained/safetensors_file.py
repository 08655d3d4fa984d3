"""safetensors files as the Hub has them, read tensor by tensor.

The file is 8 bytes with the length of a header, the header, JSON with each tensor's dtype, shape and offsets, and the
tensors' bytes. The package safetensors checks it; the tensors are read here because it has no bfloat16 for NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from tinyprune.pretrained.stored import StoredTensor, reading
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
    with reading(path, "safetensors", safetensors.SafetensorError):
        header, data = checkpoints.read_header(path)

    def tensor(dtype: str, shape: list[int], data_offsets: list[int]) -> StoredTensor:
        def load() -> NDArray:
            return WIDEN[dtype](data[slice(*data_offsets)]).reshape(shape)

        return StoredTensor(tuple(shape), dtype, load if dtype in WIDEN else None)

    header.pop("__metadata__", None)
    return {name: tensor(**entry) for name, entry in header.items()}
