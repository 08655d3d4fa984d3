"""Downloads from a real server on this machine that cuts connections, with and without Range."""

import hashlib
import sys

import numpy as np
import pytest

from tinyprune.data.download import fetch
from tinyprune.errors import TinypruneError

PAYLOAD = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def download(server, file):
    server.payload = PAYLOAD

    def download(path=file, **more):
        assert fetch(server.url, path, **{"name": "a text", "sha256": SHA256, **more}) == path
        assert path.read_bytes() == PAYLOAD
        assert not list(path.parent.glob("*.part"))

    return download


@pytest.mark.parametrize("terminal", [True, False])
def test_the_file_arrives_and_is_not_downloaded_again(terminal, download, server, file, capsys, monkeypatch):
    """A terminal shows a bar."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    path = file / "in" / "folders"
    download(path)
    assert [p.name for p in path.parent.iterdir()] == ["folders"]
    assert server.agents[0].startswith("tinyprune/")
    out, err = capsys.readouterr()
    assert out == "" and ("a text: 100%" in err if terminal else err == "")
    download(path)
    assert server.requests == [None]


@pytest.mark.parametrize(
    ("able", "cuts", "requests"),
    [
        ({}, [100_000, 50_000], [None, "bytes=100000-", "bytes=150000-"]),
        ({"ranges": False}, [100_000], [None, "bytes=100000-"]),
        # The cut shows by the known size alone.
        ({"content_length": False}, [100_000], [None, "bytes=100000-"]),
    ],
)
def test_a_cut_connection_is_resumed(download, server, able, cuts, requests):
    vars(server).update(able, cuts=cuts)
    download(size=len(PAYLOAD))
    assert server.requests == requests


def test_a_later_run_continues_an_earlier_one(download, server, file):
    server.cuts = [100_000, 0]
    with pytest.raises(TinypruneError, match=r"cut after 100,000 of 300,000 bytes \(100,000 bytes are kept"):
        download()
    assert not file.exists()
    assert file.with_name("file.part").read_bytes() == PAYLOAD[:100_000]
    server.requests.clear()
    download()
    assert server.requests == ["bytes=100000-"]


def test_a_server_without_range_that_always_cuts_is_given_up(download, server):
    vars(server).update(ranges=False, cuts=[100_000] * 10)
    with pytest.raises(TinypruneError, match="cut after"):
        download()
    assert len(server.requests) == 2


@pytest.mark.parametrize(("more", "requests"), [(b"", 1), (b"of something else", 2)])
def test_a_complete_part_is_used_if_its_hash_is_right(download, server, file, more, requests):
    file.with_name("file.part").write_bytes(PAYLOAD + more)
    download()
    assert len(server.requests) == requests


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_with_a_wrong_hash_is_set_aside(download, server, file, by_hand):
    server.payload = wrong = b"x" + PAYLOAD[1:]
    if by_hand:
        file.write_bytes(wrong)
    with pytest.raises(TinypruneError, match=f"expected {SHA256}: it is damaged") as raised:
        download()
    assert len(server.requests) == (0 if by_hand else 1)
    bad = file.with_name("file.bad")
    assert "\n" not in str(raised.value) and str(bad) in str(raised.value)
    assert list(file.parent.iterdir()) == [bad] and bad.read_bytes() == wrong
    server.payload = PAYLOAD
    download()


def test_without_a_network_the_message_gives_alternatives(download, server, file):
    server.shutdown()
    server.server_close()
    with pytest.raises(TinypruneError, match=f"{server.url}.*Connection refused") as raised:
        download(otherwise="or read a book")
    message = str(raised.value)
    assert f"put the file by hand at {file}, or read a book" in message and "\n" not in message
    assert raised.value.exit_status == 1
