"""Writing files so that they are whole at every moment, and saying it in one line when that fails."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tinyprune.errors import SaveError


def save_error(what: str, error: OSError) -> SaveError:
    """`error`, met while `what` was written, as one line that says what is lost (nothing) and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space" if full else "make sure that its directory is one and can be written"
    return SaveError(f"cannot write {what}: {error.strerror or error}; what was there before is untouched; {remedy}")


def replace_file(path: Path, content: bytes, kind: str = "") -> None:
    """Make `content` the content of `path`, so that a kill or a power failure leaves the old or the new one whole.

    It is written as `NAME.tmp` first and takes the name when all of it is on the disk; a `NAME.tmp` that a killed
    process left is overwritten by the next call.

    Args:
        path: the file; its directory is made if it is not there.
        content: the bytes.
        kind: what messages call it, such as "checkpoint".

    Raises:
        SaveError: if it cannot be written, for example because the disk is full. What was at `path` is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise save_error(f"{kind} {path}".strip(), error) from error
        raise
    # The new name reaches the disk with the directory. Not every system can sync one; the file is whole either way.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Keep other processes that lock `path` out meanwhile; its directory has to be there.

    The lock goes with the process, however it ends. Where the system has no such locks nobody is kept out.

    Raises:
        BlockingIOError: if another process is here and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
