"""Downloads from a real server on this machine."""

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
    return tmp_path / "in" / "folders" / "file"


@pytest.fixture
def download(server, file):
    server.payload = PAYLOAD

    def download(**more):
        assert fetch(server.url, file, **{"name": "a text", "sha256": SHA256, **more}) == file
        assert file.read_bytes() == PAYLOAD and list(file.parent.iterdir()) == [file]

    return download


@pytest.mark.parametrize("terminal", [True, False])
def test_the_file_arrives_and_is_not_downloaded_again(terminal, download, server, capsys, monkeypatch):
    """A terminal shows a bar."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    download()
    assert server.agents[0].startswith("tinyprune/")
    out, err = capsys.readouterr()
    assert out == "" and ("100%" in err if terminal else err == "")
    download()
    assert len(server.agents) == 1


def test_a_connection_that_is_cut_is_tried_again(download, server):
    server.cuts = [100_000]
    download()
    assert len(server.agents) == 2


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_with_a_wrong_hash_is_never_used(download, server, file, by_hand):
    server.payload = wrong = b"x" + PAYLOAD[1:]
    if by_hand:
        file.parent.mkdir(parents=True)
        file.write_bytes(wrong)
    with pytest.raises(TinypruneError, match=f"cannot download a text from {server.url}: .*hash.*{SHA256}") as raised:
        download()
    assert "\n" not in str(raised.value) and file.exists() == by_hand
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
