"""Errors that the command line reports in one line, each with an exit status.

Every message names the cause and what to do about it. Library users may catch `TinypruneError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class TinypruneError(Exception):
    """A valid request failed: a broken checkpoint, a full disk, a loss that is not a number."""

    exit_status = 1


class UsageError(TinypruneError, ValueError):
    """The request is not valid: an unknown key, a value out of range, an empty text."""

    exit_status = 2


class MissingExtraError(UsageError, ImportError):
    """A package is missing that only a part of tinyprune needs; `install_command` says how to install it."""


class CheckpointError(TinypruneError):
    """A checkpoint cannot be read: it is truncated, altered, or not one of ours."""


class SaveError(TinypruneError):
    """A file could not be written, for example because the disk is full. Its previous content is untouched."""


class NotFiniteError(TinypruneError):
    """The loss or a gradient became NaN or infinite."""


class Interrupted(TinypruneError):
    """The program was stopped by Ctrl-C or SIGTERM, after everything was saved."""

    exit_status = 130


def nearest(given: str, allowed: Iterable[str], suggestions: Mapping[str, str] | None = None) -> str:
    """Return the end of a message about an unknown name: whether the most similar of `allowed` was meant, or nothing.

    `suggestions` says what to write instead of some names.
    """
    from difflib import get_close_matches  # seldom needed, and slow to import

    for found in get_close_matches(given, [*allowed, *(suggestions or {})], 1):
        return f"; did you mean {(suggestions or {}).get(found, found)}?"
    return ""


def install_command(extra: str) -> str:
    """Return the command that installs the optional packages `extra`, and the same in a checkout."""
    return f'python -m pip install "tinyprune[{extra}]" (in a checkout: -e ".[{extra}]")'


def missing_extra(what: str, extra: str, module: str) -> BaseException:
    """Return what to raise where `what`, the module `module`, is loaded without the packages of `extra`.

    It is one line. Run as a program (`python -m`), the module ends with it; an import raises it, to be caught.
    """
    said = f"{what} needs packages that are not installed: {install_command(extra)}"
    return SystemExit(f"tinyprune: error: {said}") if module == "__main__" else MissingExtraError(said)
