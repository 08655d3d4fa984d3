"""Errors that the command line reports in one line, each with an exit status.

Every message names the cause and what to do about it. Library users may catch `TinypruneError`.
"""

from __future__ import annotations


class TinypruneError(Exception):
    """A valid request failed: a broken checkpoint, a full disk, a loss that is not a number."""

    exit_status = 1


class UsageError(TinypruneError, ValueError):
    """The request is not valid: an unknown key, a value out of range, an empty text."""

    exit_status = 2


class CheckpointError(TinypruneError):
    """A checkpoint cannot be read: it is truncated, altered, or not one of ours."""


class SaveError(TinypruneError):
    """A file could not be written, for example because the disk is full. Its previous content is untouched."""


class NotFiniteError(TinypruneError):
    """The loss or a gradient became NaN or infinite."""


class Interrupted(TinypruneError):
    """The program was stopped by Ctrl-C or SIGTERM, after everything was saved."""

    exit_status = 130
