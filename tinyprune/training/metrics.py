"""The log of a run, `metrics.jsonl`: one JSON object a line, appended as training goes on.

A checkpoint stores the length of the log at that moment. On resume the log is cut back to that length, so that repeated
steps are not logged twice.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, cast

from tinyprune.errors import CheckpointError, MissingExtraError, NotFiniteError, UsageError, install_command
from tinyprune.io.files import save_error


class MetricsLog:
    """A log that appends to `path`, which is created if missing; its directory must exist. Close it, or use `with`.

    On resume call `truncate` before the first `write`: a kill may have left half a line at the end.
    Every method raises SaveError if the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._saving():
            # Unbuffered: a line is in the file, for others to read, as soon as it is written.
            self._file = self.path.open("a+b", buffering=0)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise save_error(f"metrics {self.path}", error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append `record`, with its keys in the given order.

        Raises:
            NotFiniteError: for a NaN or an infinity, which JSON does not have.
            UsageError: for a value that is not plain (a NumPy scalar, an array).
            SaveError: if the disk is full, for example. No part of the line is then left in the file.
        """
        try:
            line = json.dumps(record, allow_nan=False).encode() + b"\n"
        except ValueError as error:
            raise NotFiniteError(f"{error} in {record}; lower the learning rate or warm up longer") from error
        except TypeError as error:
            raise UsageError(
                f"metrics must be plain values, got {record}: {error}; convert it, as by float()"
            ) from error
        end = self._file.seek(0, os.SEEK_END)
        with self._saving():
            try:
                # An almost full disk accepts a part of the line before it refuses the rest.
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)
                raise

    def sync(self) -> int:
        """Wait until all lines are on the disk; return the length of the file in bytes, for `truncate`."""
        with self._saving():
            os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, length: int) -> None:
        """Drop everything written after the `sync` that returned `length`.

        Raises CheckpointError, and changes nothing, if no line ends at `length`: it is not the checkpoint's log.
        """
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(length - 1, 0))
        if length > 0 and self._file.read(1) != b"\n":
            raise CheckpointError(
                f"{self.path} ({size} bytes) is not the log that the checkpoint was saved with: "
                f"no line ends at byte {length}; put that log back, or start a new run"
            )
        with self._saving():
            self._file.truncate(length)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class EventLog(MetricsLog):
    """A log that TensorBoard shows, too: numbers become scalars STAGE/SPLIT/NAME in event files in `events` beside it.

    `truncate`, which comes before the first `write`, makes the event files anew from the log.
    Raises MissingExtraError if tensorboardX is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            how = install_command("tensorboard")
            raise MissingExtraError(f"--tensorboard needs tensorboardX: {how}") from error
        super().__init__(path)
        self._new, self._events = SummaryWriter, cast(Any, None)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        with self._saving():
            shutil.rmtree(self.path.parent / "events", ignore_errors=True)
            self._events = self._new(str(self.path.parent / "events"), flush_secs=5)
        for record in read_metrics(self.path):
            self._show(record)

    def write(self, record: dict[str, Any]) -> None:
        super().write(record)
        self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                place = f"{record['stage']}/{record['split']}/{name}"
                self._events.add_scalar(place, value, record["step"])

    def close(self) -> None:
        super().close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a log in order, without half a line that a kill may leave at the end.

    Raises CheckpointError if there is no such file, or a line is not a JSON object.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read metrics {path}: {error.strerror or error}; check the name") from error
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            said = "is not a JSON object; remove it, or use another run's log"
            raise CheckpointError(f"line {number} of {path} {said}")
        records.append(record)
    return records
