"""Checkpoints: named arrays and their metadata in one safetensors file; a damaged file is refused.

    8 bytes     length of the header
    header      JSON: each array's name, dtype, shape and offset, and under "__metadata__" one entry of ours:
                "tinyprune": {"format_version": 1, "sha256": "…", "metadata": {what the caller gave}}
    data        the arrays' bytes, one after the other

Any safetensors reader can open it. The sha256 covers the version, the metadata and all names, dtypes, shapes and bytes,
so that a single flipped bit is noticed. (There is one entry and not three because safetensors writes several in random
order; this way equal contents make equal files.) A checkpoint is replaced atomically, see `tinyprune.io.files`.
"""

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from numpy.typing import NDArray

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.io.files import read_error, replace_file

FORMAT_VERSION = 1
ENTRY = "tinyprune"
DTYPES = {f"{x.kind.upper()}{8 * x.itemsize}": x for x in map(np.dtype, "bhiqBHIQefd")}
DTYPES["BOOL"] = np.dtype(bool)
CODES = {dtype: code for code, dtype in DTYPES.items()}


def unusable(said: str) -> CheckpointError:
    """Build the error for a file that cannot be used as a checkpoint."""
    return CheckpointError(f"{said}; use another checkpoint, or train again")


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
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "biuf" or tensor.itemsize > 8 or not tensor.dtype.isnative:
            raise UsageError(
                f"array {name} of a checkpoint must hold booleans, integers or floats of at most 64 bits in the "
                f"machine's byte order, got dtype {tensor.dtype.str}"
            )
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        allowed = "plain values with finite numbers"
        raise UsageError(f"metadata of checkpoint {path} must be {allowed}: {error}") from error
    replace_file(path, _content(tensors, {ENTRY: _entry(metadata, tensors)}), "checkpoint")


def sha256_of(path: str | Path) -> str:
    """Return the sha256 that a checkpoint's entry has, of all that it holds; "" if there is no such checkpoint."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {})[ENTRY])["sha256"]
    except (OSError, KeyError, ValueError, RecursionError, safetensors.SafetensorError):
        return ""


def load_checkpoint(path: str | Path, mapped: bool = False) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Returns:
        tensors: name -> array, in the order of the names; they are writable and not shared. `mapped` ones are pages of
            the file, read when they are used, see `release`; not on Windows, where it could not be replaced then.
        metadata: as it was given, with JSON's types (a tuple comes back as a list).

    Raises:
        CheckpointError: if the file is missing, truncated, altered in any bit, not ours, or from a newer tinyprune.
    """
    try:
        header, data = read_header(path)
        entry = header.pop("__metadata__", {}).get(ENTRY)
        if entry is None:
            raise unusable(f"{path} is a safetensors file, but not a checkpoint of tinyprune")
        tensors = {}
        for name, about in sorted(header.items()):
            start, end = about["data_offsets"]
            x = data[start:end].view(DTYPES[about["dtype"]]).reshape(about["shape"])
            as_pages = mapped and hasattr(mmap, "MADV_DONTNEED")
            tensors[name] = x.view(np.ndarray) if as_pages else np.array(x)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}; check the name, or train first") from error
    except OSError as error:
        raise read_error(f"checkpoint {path}", error) from error
    # KeyError: another program has changed an array's dtype to one that NumPy lacks.
    except (safetensors.SafetensorError, KeyError) as error:
        raise unusable(f"{path} is truncated, altered, or no checkpoint at all") from error
    try:
        fields = json.loads(entry)
        version, metadata = fields["format_version"], fields["metadata"]
        if version > FORMAT_VERSION:
            raise CheckpointError(f"{path} has format {version}, newer than {FORMAT_VERSION}; update tinyprune")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise unusable(f"{path} was altered: its metadata cannot be read") from error
    # The entry must be the one that `save_checkpoint` writes for these contents.
    if entry != _entry(metadata, tensors):
        raise unusable(f"{path} was altered after it was written (its sha256 does not match)")
    release(tensors)
    return tensors, metadata


def read_header(path: str | Path) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Return the header of a safetensors file, once it is checked, and its data: mapped, and private to the process."""
    Path(path).open("rb").close()  # safetensors would report an unreadable file as missing
    safetensors.safe_open(path, framework="numpy")
    content = np.memmap(path, np.uint8, "c")
    end = 8 + int.from_bytes(content[:8].tobytes(), "little")
    return json.loads(content[8:end].tobytes()), content[end:]


def release(tensors: dict[str, NDArray]) -> None:
    """Free the memory of `mapped` arrays, which are read again when they are used; what was changed in them is lost."""
    maps: set[Any] = {getattr(getattr(x, "base", None), "_mmap", None) for x in tensors.values()}
    for mapping in maps - {None}:
        mapping.madvise(mmap.MADV_DONTNEED)


def _content(tensors: dict[str, NDArray], metadata: dict[str, str]) -> list[Any]:
    """Return the file's bytes in pieces, the arrays among them; `safetensors.numpy.save` makes two copies of all."""
    # The widest numbers come first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, start = cast(dict[str, Any], {"__metadata__": metadata}), 0
    for name in names:
        x, end = tensors[name], start + tensors[name].nbytes
        header[name] = {"dtype": CODES[x.dtype], "shape": x.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(tensors[name] for name in names)]


def _entry(metadata: dict[str, Any], tensors: dict[str, NDArray]) -> str:
    """Return the JSON of the header's entry."""
    names = sorted(tensors)
    layout = [[name, tensors[name].dtype.name, tensors[name].shape] for name in names]
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, metadata, layout]).encode())
    for name in names:
        digest.update(cast(Any, tensors[name].ravel()))
    entry = {"format_version": FORMAT_VERSION, "sha256": digest.hexdigest()}
    return json.dumps(entry | {"metadata": metadata})
