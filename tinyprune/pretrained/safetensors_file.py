"""safetensors files as the Hub has them, read tensor by tensor.

The file is 8 bytes with the length of a header, the header, JSON with each tensor's dtype, shape and offsets, and the
tensors' bytes. The header is read here because the package safetensors has no bfloat16 for NumPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.pretrained.stored import OTHERWISE, StoredTensor, check_memory

# The stored numbers that are read: bytes of one, and how bytes become numbers that fit into float32.
WIDEN: dict[str, tuple[int, Callable[[NDArray[np.uint8]], NDArray]]] = {
    "F32": (4, lambda data: data.view("<f4")),
    "F16": (2, lambda data: data.view("<f2")),
    # bfloat16 is the upper half of float32
    "BF16": (2, lambda data: (data.view("<u2").astype(np.uint32) << 16).view(np.float32)),
}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file by name; one of other numbers than those of `WIDEN` has no `widen`.

    Raises CheckpointError unless the file is whole, UsageError if it is larger than this machine's memory.
    """
    try:
        size = path.stat().st_size
        check_memory(path, size)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise CheckpointError(f"{path} is truncated or no safetensors file; {OTHERWISE}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _stored(path, 8 + length, size, name, entry) for name, entry in header.items()}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the folder") from error
    except UsageError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} is altered or no safetensors file ({error}); {OTHERWISE}") from error


def _stored(path: Path, first: int, size: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    """Return the tensor of one entry of the header, whose data begin at byte `first` of a file of `size` bytes."""
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"tensor {name} has shape {shape} and bytes {start} … {stop}")
    width, widen = WIDEN.get(dtype, (0, None))
    if widen and stop - start != width * math.prod(shape):
        raise ValueError(f"tensor {name} of shape {shape} has {stop - start} bytes")
    if first + stop > size:
        where = f"its tensor {name} ends at byte {first + stop:,}, the file at {size:,}"
        raise CheckpointError(f"{path} is truncated: {where}; {OTHERWISE}")
    return StoredTensor(path, first + start, tuple(shape), dtype, width * math.prod(shape[-1:]), widen)
