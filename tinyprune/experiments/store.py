"""The finished cells of a study, in its directory, so that none is computed twice.

    cells.jsonl                 a line for each finished cell: its key, the cell, its record
    baselines/KEY.safetensors   weights of the baselines, which other cells start from

A line is appended and synced when its cell is done. If the process is killed while it writes, half a line is left at
the end; it is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.experiments.cells import Cell, Outcome
from tinyprune.io.files import locked, replace_file, save_error


class Store:
    """The finished cells of a directory, which is created if it does not exist.

    Raises:
        UsageError: if it is a file.
        CheckpointError: if a line of cells.jsonl before the last cannot be read.
        SaveError: if the directory cannot be created.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise UsageError(f"{self.directory} is a file; give the directory of a study")
        self.path = self.directory / "cells.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise save_error(f"study {self.directory}", error) from error
        self.load()

    def load(self) -> None:
        """Read cells.jsonl; half a line at its end is cut off."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self.records[entry["key"]] = entry["record"]
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(
                    f"line {number} of {self.path} cannot be read ({error}); delete that line and its cell is computed "
                    "again"
                ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory against other processes, see `files.locked`. Raises UsageError if one holds the lock."""
        with locked(self.directory / ".lock", wait=False):
            self.load()
            yield

    def checkpoint(self, baseline: Cell) -> bytes | None:
        """Return a baseline's weights; None if they are not stored."""
        try:
            return self.checkpoint_path(baseline).read_bytes()
        except FileNotFoundError:
            return None

    def checkpoint_path(self, baseline: Cell) -> Path:
        """Return the path of a baseline's weights."""
        return self.directory / "baselines" / f"{baseline.key}.safetensors"

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Store the result of a cell. Raises SaveError if it cannot be written; earlier cells are not changed.

        A baseline's weights are written before its line, so that the line implies them.
        """
        if outcome.checkpoint is not None:
            replace_file(self.checkpoint_path(cell), outcome.checkpoint, "baseline")
        if cell.key in self.records:
            return  # only its weights were missing
        line = json.dumps({"key": cell.key, "cell": cell.to_dict(), "record": outcome.record}, allow_nan=False)
        try:
            with self.path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise save_error(f"study {self.path}", error) from error
        self.records[cell.key] = outcome.record
