"""Downloads, against a real server on this machine that cuts connections, with and without Range."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from tinyprune.data.download import fetch
from tinyprune.errors import SaveError, TinypruneError

PAYLOAD = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves PAYLOAD, and notes the Range of every request.

    `cuts` holds for each coming request after how many bytes its connection is closed; without more, none is.
    """

    ranges = True
    content_length = True
    status = None
    payload = PAYLOAD

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts = []
        self.requests = []
        self.agents = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        server.agents.append(self.headers["User-Agent"])
        body, status = server.payload, 200
        if server.status:
            return self.send_error(server.status)
        if server.ranges and asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            body, status = body[start:], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(server.payload) - 1}/{len(server.payload)}")
        if server.content_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


def test_a_cut_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.cuts = [100_000, 50_000]
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_goes_on_with_what_an_earlier_one_left(server, tmp_path):
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


def test_a_server_without_range_sends_everything_again(server, tmp_path):
    server.ranges = False
    server.cuts = [100_000]
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert server.requests == [None, "bytes=100000-"]


def test_a_server_without_range_that_always_cuts_is_given_up(server, tmp_path):
    server.ranges = False
    server.cuts = [100_000] * 10
    with pytest.raises(TinypruneError, match="cut after"):
        download(server, tmp_path / "file")
    assert len(server.requests) == 2


def test_a_cut_shows_by_the_known_size_where_the_server_tells_no_length(server, tmp_path):
    server.content_length = False
    server.cuts = [100_000]
    download(server, tmp_path / "file", size=len(PAYLOAD))
    assert (tmp_path / "file").read_bytes() == PAYLOAD


@pytest.mark.parametrize("left", [PAYLOAD, PAYLOAD + b"of something else"])
def test_a_part_that_needs_no_more_is_used_if_it_is_the_file(server, tmp_path, left):
    (tmp_path / "file.part").write_bytes(left)
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD
    assert len(server.requests) == (1 if left == PAYLOAD else 2)


def test_a_wrong_hash_sets_the_file_aside(server, tmp_path):
    server.payload = b"x" + PAYLOAD[1:]
    with pytest.raises(TinypruneError, match=f"expected {SHA256}: it is damaged") as raised:
        download(server, tmp_path / "file")
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "file.bad") in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file.bad"]
    server.payload = PAYLOAD
    download(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == PAYLOAD


def test_a_wrong_hash_of_a_file_put_there_by_hand_is_noticed(server, tmp_path):
    (tmp_path / "file").write_bytes(b"something else")
    with pytest.raises(TinypruneError, match="expected"):
        download(server, tmp_path / "file")
    assert (tmp_path / "file.bad").read_bytes() == b"something else"
    assert server.requests == []


def test_a_hash_that_nobody_knows_is_recorded_and_checked_afterwards(server, tmp_path):
    path = tmp_path / "file"
    download(server, path, sha256=None)
    assert (tmp_path / "file.sha256").read_text() == f"{SHA256}  file\n"
    download(server, path, sha256=None)
    path.write_bytes(PAYLOAD[:-1])
    with pytest.raises(TinypruneError, match=rf"expected {SHA256} \(recorded in .*file\.sha256"):
        download(server, path, sha256=None)


def test_what_the_server_says_is_passed_on(server, tmp_path):
    server.status = 404
    with pytest.raises(
        TinypruneError, match=f"cannot download a text from {server.url}: the server says 404 Not Found"
    ):
        download(server, tmp_path / "file")


def test_without_a_network_the_message_says_what_else_to_do(server, tmp_path, monkeypatch):
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
