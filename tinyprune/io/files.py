"""Write files atomically, and report a failure in one line; and where files go that can be made again."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tinyprune.errors import CheckpointError, SaveError, UsageError, brief


def cache_directory() -> Path:
    """Return the folder of what can be downloaded or computed again: $TINYPRUNE_CACHE, or in the user's cache folder.

    That is $XDG_CACHE_HOME/tinyprune or ~/.cache/tinyprune, on macOS ~/Library/Caches/tinyprune, and on Windows
    %LOCALAPPDATA%\\tinyprune\\Cache. It need not exist.
    """
    if given := os.environ.get("TINYPRUNE_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tinyprune"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "tinyprune" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyprune"


PICTURES = (".png", ".svg", ".pdf")


def checked_path(name: str, given: str | os.PathLike, endings: Sequence[str] = ()) -> Path:
    """Return a path.

    Raises UsageError if `given` is empty, which would mean the current folder, cannot be a path, or has none of the
    `endings`, if there are some.
    """
    path = str(given)
    if endings and Path(path).suffix not in endings:
        raise UsageError(f"{name} must be a file that ends in {', '.join(endings)}; got {path!r}")
    longest = max((len(part.encode(errors="replace")) for part in Path(path).parts), default=0)
    if not path or "\0" in path or longest > 255:
        raise UsageError(f"{name} must be the path of a file or a folder, got {brief(path)}")
    return Path(path)


def save_error(what: str, error: OSError) -> SaveError:
    """Build the error for `error`, raised while writing `what`: it says that nothing is lost, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space" if full else "make sure that its directory exists and is writable"
    said = f"{error.strerror or error}; what was there before is untouched; {remedy}"
    return SaveError(f"cannot write {what}: {said}")


def read_error(what: object, error: OSError) -> CheckpointError:
    """Build the error for `error`, raised while reading `what`, a file."""
    return CheckpointError(f"cannot read {what}: {error.strerror or error}; check its permissions")


def replace_file(path: Path, content: bytes | Iterable, kind: str = "") -> None:
    """Replace the file at `path`; a kill or a power failure leaves either the old or the new content whole.

    The content is written to `NAME.tmp`, which is renamed once all of it is on the disk; a `NAME.tmp` left by a killed
    process is overwritten by the next call.

    Args:
        path: the file; its directory is created if missing.
        content: the bytes, or pieces of them in order: bytes, or arrays in C order.
        kind: what messages call the file, such as "checkpoint".

    Raises:
        SaveError: if it cannot be written, for example because the disk is full. The old file is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    if isinstance(content, bytes):
        content = [content]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # it may be a link to a file of somebody's
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise save_error(f"{kind} {path}".strip(), error) from error
        raise
    # Sync the directory, which holds the new name. Not every system can; the file is whole either way.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock `path`, so that other processes cannot have it; its directory must exist.

    The lock is released when the process ends, however it ends. Beside it, NAME.by says who holds it.

    Raises:
        UsageError: if another process holds the lock and `wait` is false; the message says which.
        SaveError: if the directory cannot be written.
    """
    from filelock import FileLock, Timeout

    holder = path.with_name(path.name + ".by")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout as error:
        who = ""
        with contextlib.suppress(OSError):
            who = f" ({holder.read_text(encoding='utf-8')})"
        raise UsageError(
            f"another process{who} is at work in {path.parent}; wait for it, or give another directory"
        ) from error
    except OSError as error:
        raise save_error(f"lock {path}", error) from error
    try:
        by = f"{os.getpid()} on {platform.node()}, since {time.strftime('%F %T')}"
        replace_file(holder, by.encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
