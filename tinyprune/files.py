"""Writing files so that they are whole at every moment."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Make `content` the content of `path`, so that a kill or a power failure leaves the old or the new one whole.

    It is written as `NAME.tmp` first and takes the name when all of it is on the disk; a `NAME.tmp` that a killed
    process left is overwritten by the next call.

    Args:
        path: the file; its directory is made if it is not there.
        content: the bytes.

    Raises:
        OSError: if it cannot be written, for example because the disk is full. What was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The new name reaches the disk with the directory. Not every system can sync one; the file is whole either way.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
