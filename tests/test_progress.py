"""Progress bars are drawn only where somebody sees them."""

import io
import sys

import pytest

from tinyprune.progress import silent


def stream(module, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    Stream.__module__ = module
    return Stream()


@pytest.mark.parametrize(
    ("module", "terminal", "expected"),
    [("io", True, False), ("io", False, True), ("ipykernel.iostream", False, False)],
)
def test_silent_unless_seen(monkeypatch, module, terminal, expected):
    monkeypatch.setattr(sys, "stderr", stream(module, terminal))
    assert silent() is expected
