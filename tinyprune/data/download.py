"""Downloads with a progress bar and a checked sha256, which resume after a broken connection.

Bytes are collected in FILE.part. After a break, the rest is requested by an HTTP Range request (RFC 9110 §14), at once
or by a later run. Only a complete file with the right hash gets the name FILE, so a file of that name can be trusted.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tinyprune.errors import SaveError, TinypruneError
from tinyprune.progress import progress_bar

# Some hosts answer 403 to urllib's own user agent.
USER_AGENT = "tinyprune/0.1"
TIMEOUT_SECONDS = 30


class _Interrupted(Exception):
    """The network failed: no connection, an error from the server, or too few bytes."""


def fetch(url: str, path: Path, *, name: str, sha256: str, size: int | None = None, otherwise: str = "") -> Path:
    """Make sure that the file of `url` is at `path`, complete and unaltered; download it if it is not there.

    Args:
        sha256: 64 hexadecimal digits.
        size: in bytes, for the progress bar if the server does not send it.
        otherwise: advice for users without a network, added to that message.

    Raises:
        TinypruneError: if the network or the server fails, or if the hash is wrong; the file is then set aside.
        SaveError: if the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        if path.exists():
            _verify(path, path, sha256)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(url, path, part, name, size, otherwise)
            _verify(part, path, sha256)
            part.replace(path)
    except OSError as error:
        raise SaveError(
            f"cannot read or write {path}: {error.strerror or error}; set TINYPRUNE_CACHE to another folder"
        ) from error
    return path


def _download(url: str, path: Path, part: Path, name: str, size: int | None, otherwise: str) -> None:
    """Fill `part`, trying again for as long as every attempt brings new bytes."""
    furthest = _size(part)
    while True:
        try:
            _receive(url, part, name, size)
            return
        except _Interrupted as error:
            if _size(part) <= furthest:
                kept = f" ({_size(part):,} bytes are kept, and the next run goes on from there)" if _size(part) else ""
                raise TinypruneError(
                    f"cannot download {name} from {url}: {error}{kept}; try again, put the file by hand at "
                    f"{path.absolute()}, {otherwise}".rstrip(", ")
                ) from error
            furthest = _size(part)


def _receive(url: str, part: Path, name: str, size: int | None) -> None:
    """Make one request: append the missing bytes to `part`, or start it anew if the server does not support Range."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise _Interrupted(f"the server says {error.code} {error.reason}") from error
        # Nothing follows the bytes that we have: either they are complete, or they belong to something else.
        if error.headers.get("Content-Range") != f"bytes */{have}":
            part.unlink()
            _receive(url, part, name, size)
        return
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(getattr(error, "reason", error))) from error

    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else size
        bar = progress_bar(desc=name, total=total, initial=have, unit="B", unit_scale=True, mininterval=0.5)
        with part.open("ab" if have else "wb") as file, bar:
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    # A connection that is closed early looks like the end of the file to http.client.
    if total is not None and have < total:
        raise _Interrupted(f"the connection was cut after {have:,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes, none at the end. A failing network raises _Interrupted, a failing disk OSError."""
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection was cut: {error}") from error


def _verify(file: Path, path: Path, sha256: str) -> None:
    """Compare the hash of `file` with `sha256`; set the file aside and raise TinypruneError if it is another."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        aside = file.replace(path.with_name(f"{path.name}.bad"))
        raise TinypruneError(
            f"{path} has sha256 {found}, expected {sha256}: it is damaged, or it has changed where it comes "
            f"from; it was set aside as {aside}, run again to download it afresh"
        )


def _size(path: Path) -> int:
    """Return the size in bytes, 0 if there is no such file."""
    return path.stat().st_size if path.exists() else 0
