"""Checkpoints come back exactly, or not at all: damage, foreign files, full disks and kills, all for real."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tinyprune.errors import CheckpointError, UsageError
from tinyprune.training.checkpoints import load_checkpoint, release, save_checkpoint

TENSORS = {
    "layers.0.Wq": np.arange(6, dtype=np.float32).reshape(2, 3),
    "m.layers.0.Wq": np.array([1e-300, np.nan, -np.inf]),
    "half": np.array([0.5, -2.0], np.float16),
    "steps": np.array(12, np.int64),
    "no heads": np.zeros((4, 0), np.float32),
    "tokens": np.array([0, 255], np.uint8),
    "mask": np.array([True, False, True]),
}
METADATA = {"none": None, "generator": np.random.default_rng(0).bit_generator.state}
METADATA |= {"config": {"lr": 0.1, "largest": 1e308, "corpus": 'é "quoted" \\ \n', "heads": [8, 0]}}


@pytest.fixture
def path(tmp_path):
    """A saved checkpoint, before which a killed process has left half of a longer one."""
    (tmp_path / "c.safetensors.tmp").write_bytes(b"half of a checkpoint" * 1000)
    save_checkpoint(tmp_path / "c.safetensors", TENSORS, METADATA)
    return tmp_path / "c.safetensors"


def assert_same(tensors: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(tensors) == sorted(expected)
    for name, tensor in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape), name
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def assert_refused(path: Path, words: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_round_trip(path):
    """Any safetensors reader can open the file, too, and equal contents make equal files."""
    assert_same(dict(sorted(safetensors.numpy.load_file(path).items())), TENSORS)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["tinyprune"])["metadata"] == METADATA
    whole = path.read_bytes()
    for _ in range(4):
        save_checkpoint(path, dict(reversed(TENSORS.items())), METADATA)
        assert path.read_bytes() == whole
    tensors, metadata = load_checkpoint(path)
    assert_same(tensors, TENSORS)
    assert metadata == METADATA
    assert list(path.parent.iterdir()) == [path]
    for tensor in tensors.values():
        tensor[...] = 1  # which is no view of the file
    assert_same(load_checkpoint(path)[0], TENSORS)
    mapped, _ = load_checkpoint(path, mapped=True)
    mapped["half"][0] = 1  # which is lost
    release(mapped)
    assert_same(mapped, TENSORS)


def test_views_are_saved_as_they_look(tmp_path):
    """safetensors by itself would write the bytes in the gaps of such memory, too."""
    x = np.arange(12.0).reshape(3, 4)
    views = {"transposed": x.T, "strided": x[:, ::2], "reversed": x[::-1]}
    views |= {"broadcast": np.broadcast_to(x[0], (2, 4))}
    views |= {"latest": x.reshape(2, 2, 3)[:, -1:], "real": (x + 1j).real[:, -2:]}
    save_checkpoint(tmp_path / "c.safetensors", views, {})
    assert_same(load_checkpoint(tmp_path / "c.safetensors")[0], views)


def test_every_change_of_a_byte_or_of_the_length_is_noticed(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert_refused(path)
    for more in (b"\0", b" ", b"{}"):
        path.write_bytes(whole + more)
        assert_refused(path)
    path.write_bytes(whole)
    assert_same(load_checkpoint(path)[0], TENSORS)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        assert_refused(path, "truncated")


CHANGED = {"format_version": "x"}, {"metadata": {**METADATA, "none": 0}}, "no JSON", [1]
ENTRIES = [({"format_version": 2}, "format 2, newer than 1.*update tinyprune")]
ENTRIES += [(entry, "altered") for entry in CHANGED]


@pytest.mark.parametrize(("change", "words"), ENTRIES)
def test_metadata_that_is_not_as_written_is_refused(path, change, words):
    """The file is whole as safetensors, only its header's entry has changed."""
    with safetensors.safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["tinyprune"])
    entry = json.dumps(fields | change if isinstance(change, dict) else change)
    path.write_bytes(safetensors.numpy.save(TENSORS, {"tinyprune": entry}))
    assert_refused(path, words)


def test_a_dtype_that_numpy_lacks_is_refused(tmp_path):
    """As when another program has turned the weights into bfloat16 and kept the metadata."""
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"x": np.ones(3, np.float16)}, {})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].replace(b'"F16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    assert_refused(path)


NOT_OURS = [b"", b"{}", b"To be, or not to be, that is the question." * 9, bytes(1000)]
FOREIGN = [safetensors.numpy.save({"x": np.ones(3)}, metadata) for metadata in (None, {"format": "np"})]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    assert_refused(path, "there is no checkpoint")
    assert_refused(tmp_path, "cannot read")
    refused = (NOT_OURS, "no checkpoint at all"), (FOREIGN, "not a checkpoint of tinyprune")
    for contents, words in refused:
        for content in contents:
            path.write_bytes(content)
            assert_refused(path, words)


FOREIGN_ARRAYS = (np.array(["a"]), np.array([None]), np.ones(2, np.complex128), np.ones(2, ">f4"), np.ones(2, "M8[s]"))
NOT_JSON = (float("nan"), float("inf"), np.float32(1), np.ones(2), Path("x"))


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [({"x": x}, {}, "array x") for x in FOREIGN_ARRAYS] + [({}, {"best": {"loss": x}}, "metadata") for x in NOT_JSON],
)
def test_what_the_file_cannot_hold_is_refused(tmp_path, tensors, metadata, words):
    with pytest.raises(UsageError, match=words):
        save_checkpoint(tmp_path / "c.safetensors", tensors, metadata)
    assert list(tmp_path.iterdir()) == []
