"""A server on this machine, for downloads."""

import gc
import http.server
import threading
import warnings
from types import SimpleNamespace

import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves `payload` at any address and records who asks."""

    payload = b""
    status = None  # an error with which it answers instead

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts = []  # for each coming request, after how many bytes its connection is closed
        self.agents = []
        self.url = f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.agents.append(self.headers["User-Agent"])
        if server.status:
            return self.send_error(server.status)
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.payload)))
        self.end_headers()
        self.wfile.write(server.payload[: server.cuts.pop(0)] if server.cuts else server.payload)
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    # Otherwise pooch would wait longer from one attempt to the next.
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    # Pooch leaves the socket of a broken connection to the collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
