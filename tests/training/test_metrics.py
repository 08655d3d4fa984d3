"""The log of a run: what is written is read back, also after a kill, a resume and a full disk."""

import sys

import numpy as np
import pytest
from command import files_up_to
from tensorboardX.proto.event_pb2 import Event

from tinyprune.errors import CheckpointError, NotFiniteError, SaveError, UsageError
from tinyprune.training.metrics import EventLog, MetricsLog, read_metrics


def test_round_trip(tmp_path):
    records = [{"step": 0, "loss": 0.1 + 0.2, "heads": [8, 7]}, {"stage": "gäte\n", "best": None}, {}]
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for record in records:
            log.write(record)
    assert read_metrics(tmp_path / "metrics.jsonl") == records
    line = b'{"step": 0, "loss": 0.30000000000000004, "heads": [8, 7]}'
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines()[0] == line


@pytest.mark.parametrize("torn", [b"", b'{"step": 2}\n', b'{"step": 2}\n{"st', b'{"st'])
def test_resume_drops_what_came_after_the_checkpoint(tmp_path, torn):
    path = tmp_path / "m"
    with MetricsLog(path) as log:
        log.write({"step": 0})
        log.write({"step": 1})
        length = log.sync()
    assert length == path.stat().st_size
    with path.open("ab") as file:
        file.write(torn)
    assert len(read_metrics(path)) == 2 + torn.count(b"\n")  # without the torn line
    with MetricsLog(path) as log:
        log.truncate(length)
        log.write({"step": 2, "again": True})
    assert read_metrics(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]


def scalars(folder):
    """Return what the event files in a folder hold: framed messages, a length of 8 bytes and its check before each."""
    content, found = b"".join(file.read_bytes() for file in folder.iterdir()), []
    while content:
        length = int.from_bytes(content[:8], "little")
        event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


def test_event_files_follow_the_log_through_a_resume(tmp_path):
    entry = {"stage": "gate", "split": "train"}
    with EventLog(tmp_path / "m") as log:
        log.truncate(0)
        log.write(entry | {"step": 1, "loss": 2.5, "log_alpha": [[0.5]], "best": None})
        length = log.sync()
        log.write(entry | {"step": 2, "loss": 9.0})
    with EventLog(tmp_path / "m") as log:
        log.truncate(length)
        log.write(entry | {"step": 2, "loss": 1.5, "heads_open": 3})
    names = [("gate/train/loss", 1, 2.5), ("gate/train/loss", 2, 1.5), ("gate/train/heads_open", 2, 3.0)]
    assert scalars(tmp_path / "events") == names


@pytest.mark.parametrize("length", [13, 5, 11, 1000])
def test_another_log_is_refused_and_left_alone(tmp_path, length):
    content = b'{"step": 0}\n'  # 12 bytes
    (tmp_path / "m").write_bytes(content)
    with MetricsLog(tmp_path / "m") as log, pytest.raises(CheckpointError, match=rf"12 bytes.*byte {length};"):
        log.truncate(length)
    assert (tmp_path / "m").read_bytes() == content


INFINITE = (float("nan"), float("-inf"), [1.0, float("inf")], {"deep": [float("nan")]})
NOT_PLAIN = (np.float32(1), np.int64(1), np.ones(2), {1, 2})


@pytest.mark.parametrize(
    ("value", "error"), [(x, NotFiniteError) for x in INFINITE] + [(x, UsageError) for x in NOT_PLAIN]
)
def test_what_json_cannot_hold_is_refused(tmp_path, value, error):
    with MetricsLog(tmp_path / "m") as log, pytest.raises(error, match="'loss': "):
        log.write({"step": 0, "loss": value})
    assert (tmp_path / "m").read_bytes() == b""


@pytest.mark.parametrize("line", [b"", b"nonsense", b"[1]", b"\xff", b'{"a": 1} {"b": 2}'])
def test_reading_names_a_bad_line(tmp_path, line):
    (tmp_path / "m").write_bytes(b'{"step": 0}\n' + line + b"\n")
    with pytest.raises(CheckpointError, match="line 2 of"):
        read_metrics(tmp_path / "m")


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_leaves_no_part_of_a_line(tmp_path):
    with MetricsLog(tmp_path / "m") as log:
        log.write({"step": 0})
        said = r"^cannot write metrics [^\n]*m: File too large[^\n]*free some space[^\n]*$"
        with files_up_to(100), pytest.raises(SaveError, match=said):
            log.write({"text": "x" * 200})
        log.write({"step": 1})
        log.sync()
    assert read_metrics(tmp_path / "m") == [{"step": 0}, {"step": 1}]
