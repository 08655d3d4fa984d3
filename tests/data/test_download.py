"""Downloads from a real server on this machine that cuts connections, with and without Range."""

import hashlib

import numpy as np
import pytest

from tinyprune.data.download import fetch
from tinyprune.errors import SaveError, TinypruneError

PAYLOAD = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def server(server):
    server.payload = PAYLOAD
    return server


def download(server, path, **more):
    return fetch(server.url, path, **{"name": "a text", "sha256": SHA256, **more})


def test_the_file_arrives_whole_with_a_bar_on_standard_error(server, tmp_path, capsys):
    path = tmp_path / "new" / "folder" / "file"
    assert download(server, path) == path
    assert path.read_bytes() == PAYLOAD
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert server.agents[0].startswith("tinyprune/")
    out, err = capsys.readouterr()
    assert out == ""
    assert "a text: 100%" in err


def test_a_file_that_is_there_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "file").write_bytes(PAYLOAD)
    download(server, tmp_path / "file")
    assert server.requests == []


@pytest.mark.parametrize(
    ("able", "cuts", "requests"),
    [
        ({}, [100_000, 50_000], [None, "bytes=100000-", "bytes=150000-"]),
        ({"ranges": False}, [100_000], [None, "bytes=100000-"]),
        # The cut shows by the known size alone.
        ({"content_length": False}, [100_000], [None, "bytes=100000-"]),
    ],
    ids=["range", "no range", "no length"],
)
def test_a_cut_connection_is_resumed(server, tmp_path, able, cuts, requests):
    vars(server).update(able, cuts=cuts)
    download(server, tmp_path / "file", size=len(PAYLOAD))
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert server.requests == requests


def test_a_later_run_continues_an_earlier_one(server, tmp_path):
    server.cuts = [100_000, 0]
    with pytest.raises(TinypruneError, match=r"cut after 100,000 of 300,000 bytes \(100,000 bytes are kept"):
        download(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").read_bytes() == PAYLOAD[:100_000]
    server.requests.clear()
    download(server, tmp_path / "file")
    assert server.requests == ["bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert not (tmp_path / "file.part").exists()


def test_a_server_without_range_that_always_cuts_is_given_up(server, tmp_path):
    server.ranges = False
    server.cuts = [100_000] * 10
    with pytest.raises(TinypruneError, match="cut after"):
        download(server, tmp_path / "file")
    assert len(server.requests) == 2


@pytest.mark.parametrize("left", [PAYLOAD, PAYLOAD + b"of something else"])
def test_a_complete_part_is_used_if_its_hash_is_right(server, tmp_path, left):
    (tmp_path / "file.part").write_bytes(left)
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert len(server.requests) == (1 if left == PAYLOAD else 2)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_with_a_wrong_hash_is_set_aside(server, tmp_path, by_hand):
    server.payload = wrong = b"x" + PAYLOAD[1:]
    if by_hand:
        (tmp_path / "file").write_bytes(wrong)
    with pytest.raises(TinypruneError, match=f"expected {SHA256}: it is damaged") as raised:
        download(server, tmp_path / "file")
    assert len(server.requests) == (0 if by_hand else 1)
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "file.bad") in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file.bad"]
    assert (tmp_path / "file.bad").read_bytes() == wrong
    server.payload = PAYLOAD
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD


def test_an_unknown_hash_is_recorded_and_checked_afterwards(server, tmp_path):
    path = tmp_path / "file"
    download(server, path, sha256=None)
    assert (tmp_path / "file.sha256").read_text() == f"{SHA256}  file\n"
    download(server, path, sha256=None)
    path.write_bytes(PAYLOAD[:-1])
    with pytest.raises(TinypruneError, match=rf"expected {SHA256} \(recorded in .*file\.sha256"):
        download(server, path, sha256=None)


def test_the_answer_of_the_server_is_passed_on(server, tmp_path):
    server.status = 404
    with pytest.raises(
        TinypruneError, match=f"cannot download a text from {server.url}: the server says 404 Not Found"
    ):
        download(server, tmp_path / "file")


def test_without_a_network_the_message_gives_alternatives(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(TinypruneError, match="Connection refused") as raised:
        fetch(url, tmp_path / "file", name="a text", otherwise="or read a book")
    message = str(raised.value)
    assert url in message
    assert f"put the file by hand at {tmp_path / 'file'}, or read a book" in message
    assert "\n" not in message
    assert raised.value.exit_status == 1


def test_a_folder_that_cannot_be_made_is_an_error_of_saving(server, tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(SaveError, match=r"cannot read or write .* set TINYPRUNE_DATA"):
        download(server, tmp_path / "data" / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
