"""What is finished stays finished: half lines, lost weights, full disks."""

import json

import pytest
from toy import toy_cell

from tinyprune.errors import CheckpointError, SaveError, UsageError
from tinyprune.experiments.cells import Outcome
from tinyprune.experiments.store import Store


def filled(tmp_path) -> Store:
    store = Store(tmp_path / "study")
    store.add(toy_cell(tmp_path), Outcome({"heads": [2, 2]}, b"weights"))
    store.add(toy_cell(tmp_path, "random", 2), Outcome({"heads": [1, 1]}))
    return store


def test_what_was_added_is_there_in_the_next_process(tmp_path):
    filled(tmp_path)
    store = Store(tmp_path / "study")
    assert store.records[toy_cell(tmp_path, "random", 2).key] == {"heads": [1, 1]}
    assert toy_cell(tmp_path, "random", 1).key not in store.records
    assert store.checkpoint(toy_cell(tmp_path)) == b"weights"
    assert store.checkpoint(toy_cell(tmp_path, seed=1)) is None
    lines = [json.loads(line) for line in store.path.read_text().splitlines()]
    assert [line["cell"]["method"] for line in lines] == ["baseline", "random"]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_half_a_line_is_cut_off_and_the_rest_kept(cut, tmp_path):
    path = filled(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    store = Store(tmp_path / "study")
    assert list(store.records) == [toy_cell(tmp_path).key]
    assert path.read_bytes() == whole.splitlines(keepends=True)[0]
    store.add(toy_cell(tmp_path, "random", 2), Outcome({"heads": [1, 1]}))
    assert path.read_bytes() == whole


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    path = filled(tmp_path).path
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"line 1 of .*cells.jsonl cannot be read .*delete that line"):
        Store(tmp_path / "study")


def test_two_processes_do_not_write_into_one_study(tmp_path):
    one, two = Store(tmp_path / "study"), Store(tmp_path / "study")
    with one.locked():
        with pytest.raises(UsageError, match=r"another process .* is at work in .*another directory"), two.locked():
            pass
        one.add(toy_cell(tmp_path, "random", 2), Outcome({"heads": [1, 1]}))
    with two.locked():
        assert two.records[toy_cell(tmp_path, "random", 2).key] == {"heads": [1, 1]}


def test_where_there_is_no_place_for_a_study_or_its_log(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; give the directory of a study"):
        Store(tmp_path / "file")
    with pytest.raises(SaveError, match="cannot write study"):
        Store(tmp_path / "file" / "below")
    store = Store(tmp_path / "study")
    store.path.mkdir()
    with pytest.raises(SaveError, match=r"cannot write study .*cells.jsonl"):
        store.add(toy_cell(tmp_path, "random", 2), Outcome({}))
