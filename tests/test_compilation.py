"""What the user sees while kernels are compiled."""

from contextlib import contextmanager
from types import SimpleNamespace

from tinyprune.compilation import announced


def test_names_and_numbers_what_is_compiled(capsys):
    @contextmanager
    def compilations(tell):
        tell("forward")
        yield
        tell("backward")

    with announced(SimpleNamespace(compilations=compilations)):
        pass
    shown = capsys.readouterr().err
    assert "compiling kernels, once on this machine: 2 functions" in shown
    assert "backward" in shown


def test_silent_when_nothing_is_compiled(capsys):
    @contextmanager
    def compilations(tell):
        yield

    for ops in (SimpleNamespace(compilations=compilations), SimpleNamespace(compilations=None)):
        with announced(ops):
            pass
    assert capsys.readouterr().err == ""
