"""Checkpoints: named arrays and their metadata in one safetensors file; a damaged file is refused.

    8 bytes     length of the header
    header      JSON: each array's name, dtype, shape and offset, and under "__metadata__" one entry of ours:
                "tinyprune": {"format_version": 1, "sha256": "…", "metadata": {what the caller gave}}
    data        the arrays' bytes, one after the other

Any safetensors reader can open it. The sha256 covers the version, the metadata and all names, dtypes, shapes and bytes,
so that a single flipped bit is noticed. (There is one entry and not three because safetensors writes several in random
order; this way equal contents make equal files.) A checkpoint is replaced atomically, see `tinyprune.files`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.files import replace_file

FORMAT_VERSION = 1
ENTRY = "tinyprune"
# safetensors' names of NumPy's dtypes, in the order in which it writes arrays.
DTYPES = {
    **{"uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32", "int32": "I32"},
    **{"float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"},
}
OTHERWISE = "use another checkpoint, or train again"


def save_checkpoint(path: str | Path, tensors: dict[str, NDArray], metadata: dict[str, Any]) -> None:
    """Write `tensors` and `metadata` to `path`, whole or not at all.

    Args:
        path: the file; an existing one is replaced atomically.
        tensors: name -> array of booleans, integers or floats, of any shape (0-d and empty ones too).
        metadata: values that JSON can hold: dicts with strings as keys, lists, strings, finite numbers, booleans, None.

    Raises:
        UsageError: for an array or metadata that the file cannot hold.
        SaveError: if it cannot be written, for example because the disk is full. The old file is untouched.
    """
    path = Path(path)
    tensors = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"metadata of checkpoint {path} must be plain values with finite numbers: {error}") from error
    layout = {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}
    entry = {ENTRY: _entry(metadata, tensors)}
    replace_file(path, safetensors_pieces(layout, tensors.__getitem__, entry), "checkpoint")


def safetensors_pieces(
    layout: dict[str, tuple[str, tuple[int, ...]]], make: Callable[[str], NDArray], metadata: dict[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes that `safetensors.numpy.save` returns, but never as a whole: for models that fill memory.

    Args:
        layout: name of each array -> name of its dtype, one of `DTYPES`, and its shape.
        make: from a name to the array, called when it is written; one in C order is not copied.
        metadata: of the header.
    """
    order = sorted(layout, key=lambda name: (list(DTYPES).index(layout[name][0]), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        (dtype, shape), start = layout[name], end
        end += np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        if math.prod(layout[name][1]):
            yield np.ascontiguousarray(make(name)).reshape(-1).view(np.uint8).data


def load_checkpoint(path: str | Path) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Returns:
        tensors: name -> array, in the order of the names; they are writable and not shared.
        metadata: as it was given, with JSON's types (a tuple comes back as a list).

    Raises:
        CheckpointError: if the file is missing, truncated, altered in any bit, not ours, or from a newer tinyprune.
    """
    try:
        Path(path).open("rb").close()  # safetensors would report an unreadable file as missing
        with safetensors.safe_open(path, framework="numpy") as file:
            entry = (file.metadata() or {}).get(ENTRY)
            if entry is None:
                raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of tinyprune; {OTHERWISE}")
            metadata = _metadata(path, entry)
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; check the name, or train first") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error.strerror or error}; check its permissions"
        ) from error
    # TypeError and AttributeError: another program has changed an array's dtype to one that NumPy lacks.
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is truncated, altered, or no checkpoint at all ({error}); {OTHERWISE}"
        ) from error
    # The entry must be the one that `save_checkpoint` writes for these contents.
    if entry != _entry(metadata, tensors):
        raise CheckpointError(f"{path} was altered after it was written (its sha256 does not match); {OTHERWISE}")
    return tensors, metadata


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of `rng` as plain values for `metadata`. Raises UsageError unless it is a PCG64."""
    state = dict(rng.bit_generator.state)
    if state["bit_generator"] != "PCG64":
        raise UsageError(
            f"only a PCG64 generator can be saved, got {state['bit_generator']}; use numpy.random.default_rng"
        )
    return state


def restore_generator(state: dict[str, Any]) -> np.random.Generator:
    """Return a generator that continues from a state of `generator_state`. (Its `spawn` starts anew, though.)

    Raises CheckpointError if `state` is not such a state.
    """
    bits = np.random.PCG64(0)
    try:
        bits.state = cast(Any, state)
        accepted = bits.state == state
    except (TypeError, ValueError, KeyError, OverflowError):
        accepted = False
    if not accepted:
        raise CheckpointError(f"the checkpoint's random generator state is not that of a PCG64; {OTHERWISE}")
    return np.random.Generator(bits)


def _storable(name: str, tensor: NDArray) -> NDArray:
    """Return `tensor` as an array. Raises UsageError for a dtype that safetensors has not."""
    tensor = np.asarray(tensor)
    if tensor.dtype.kind not in "biuf" or tensor.itemsize > 8 or not tensor.dtype.isnative:
        raise UsageError(
            f"array {name} of a checkpoint must hold booleans, integers or floats of at most 64 bits in the machine's "
            f"byte order, got dtype {tensor.dtype.str}"
        )
    return tensor


def _entry(metadata: dict[str, Any], tensors: dict[str, NDArray]) -> str:
    """Return the JSON of the header's entry."""
    names = sorted(tensors)
    layout = [[name, tensors[name].dtype.name, tensors[name].shape] for name in names]
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, metadata, layout]).encode())
    for name in names:
        digest.update(cast(Any, tensors[name].ravel()))
    return json.dumps({"format_version": FORMAT_VERSION, "sha256": digest.hexdigest(), "metadata": metadata})


def _metadata(path: str | Path, entry: str) -> dict[str, Any]:
    """Return the caller's metadata from the header's entry."""
    try:
        fields = json.loads(entry)
        version, metadata = fields["format_version"], fields["metadata"]
        newer = version > FORMAT_VERSION
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} was altered: its metadata cannot be read; {OTHERWISE}") from error
    if newer:
        raise CheckpointError(
            f"{path} has format {version}, newer than {FORMAT_VERSION}, the newest that is known; update tinyprune"
        )
    return metadata
