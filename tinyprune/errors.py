"""The errors that the command line turns into one clear line and an exit status.

Every message names the cause and what to do about it. Library users may catch `TinypruneError`.
"""

from __future__ import annotations


class TinypruneError(Exception):
    """Something failed although it was used as meant: a broken checkpoint, a full disk, a loss that is not a number."""

    exit_status = 1


class UsageError(TinypruneError, ValueError):
    """Something was asked for that cannot be done: an unknown key, a value out of range, an empty text."""

    exit_status = 2


class CheckpointError(TinypruneError):
    """A checkpoint that cannot be read: truncated, altered, or not one of ours."""


class SaveError(TinypruneError):
    """A file that could not be written, for example because the disk is full. What was there before is untouched."""


class NotFiniteError(TinypruneError):
    """The loss or a gradient became NaN or infinite."""


class Interrupted(TinypruneError):
    """Stopped by Ctrl-C or SIGTERM after everything was saved."""

    exit_status = 130
