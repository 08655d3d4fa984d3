"""A server on this machine, for downloads."""

import http.server
import threading

import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves `payload` at any address and records the Range of every request."""

    payload = b""
    ranges = content_length = True  # whether it knows Range, and says how long an answer is
    status = None  # an error with which it answers instead

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts = []  # for each coming request, after how many bytes its connection is closed
        self.requests, self.agents = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        server.agents.append(self.headers["User-Agent"])
        if server.status:
            return self.send_error(server.status)
        size = len(server.payload)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if server.ranges and asked else 0
        body = server.payload[start:]
        status = 200 if not start else 206 if body else 416
        self.send_response(status)
        if status != 200:
            self.send_header("Content-Range", f"bytes {f'{start}-{size - 1}' if body else '*'}/{size}")
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
