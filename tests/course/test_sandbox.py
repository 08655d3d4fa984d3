"""An answer runs in a process of its own: what goes over and back, and what happens when it misbehaves."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinyprune.course.sandbox import AnswerDied, AnswerError, Limits, Sandbox

SOURCE = """
import os, time
import numpy as np

calls = 0

def double_forward(x):
    global calls
    calls += 1
    return 2 * x, {"x": x, "calls": calls}

def double_backward(dout, cache):
    cache["calls"] += 1
    return 2 * dout, cache["calls"]

def apply(f, x, **options):
    return f(x) + f(x, **options)

def sleep(seconds):
    time.sleep(seconds)
    return seconds

def where():
    return os.getcwd(), os.getpid(), os.environ.get("A_SECRET"), os.environ.get("GIVEN")
"""


@contextlib.contextmanager
def sandbox_with(source=SOURCE, environment=None, **limits):
    with Sandbox(Limits(**limits), environment=environment) as sandbox:
        sandbox.run(source)
        yield sandbox


@pytest.fixture
def sandbox():
    with sandbox_with() as sandbox:
        yield sandbox


def test_runs_in_a_directory_and_an_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("A_SECRET", "42")
    with sandbox_with(SOURCE + "open('note', 'w').write('x')", {"GIVEN": "1"}) as sandbox:
        directory, process, *environment = sandbox.function("where")()
        assert process not in (os.getpid(), os.getppid())
        assert environment == [None, "1"]
        assert Path(directory).exists()
    assert not Path(directory).exists()


def test_cache_stays_there_and_is_the_same_each_time(sandbox):
    out, cache = sandbox.function("double_forward", "cache")(np.arange(3.0))
    assert out.tolist() == [0, 2, 4]
    backward = sandbox.function("double_backward")
    assert [backward(np.ones(2), cache)[1] for _ in range(3)] == [2, 3, 4]


def test_calls_back(sandbox):
    seen = []

    def f(x, y=0):
        seen.append((x, y))
        if x < 0:
            raise ValueError("the budget is used")
        return x + y

    assert sandbox.function("apply")(f, 2.0, y=5.0) == 9.0
    assert seen == [(2.0, 0), (2.0, 5.0)]
    with pytest.raises(AnswerError, match="ValueError: the budget is used"):
        sandbox.function("apply")(f, -1.0)
    assert sandbox.function("sleep")(0) == 0


def test_error_has_kind_message_and_only_the_lines_of_the_answer(sandbox):
    sandbox.run("def fail(x):\n    deeper(x)\ndef deeper(x):\n    raise ValueError(f'no {x}')")
    with pytest.raises(AnswerError) as error:
        sandbox.function("fail")("way")
    assert error.value.kind == "ValueError"
    for part in ("no way", "in fail", "in deeper\n    raise ValueError"):
        assert part in str(error.value)
    assert "child.py" not in str(error.value)
    with pytest.raises(AnswerError, match=r"(?s)SyntaxError.*mine\.py, line 2\n    def f\(:"):
        sandbox.run("x = 1\ndef f(:\n", "mine.py")


def test_definitions_above_an_error_are_there(sandbox):
    with pytest.raises(AnswerError, match="ZeroDivisionError"):
        sandbox.run("not_a_function = 3\ndef early():\n    return 1\n1 / 0\ndef late():\n    return 2")
    assert [name for name in ("early", "late", "not_a_function") if sandbox.has(name)] == ["early"]


def test_printed_text_is_kept_and_cut():
    with sandbox_with("", output_characters=100) as sandbox:
        assert sandbox.run("n = globals().get('n', 0) + 1\nprint('run', n)") == "run 1\n"
        assert sandbox.run("for i in range(1000):\n    print(i)").endswith("… (cut)\n")
        assert sandbox.run("pass") == ""


# Messages sent past the protocol.
FORGE = """
import gc, io, json, struct, threading
wire, connection = (next(o for o in gc.get_objects() if type(o).__name__ == name) for name in ("Wire", "SocketIO"))
wire_fd = connection.fileno()
def message(text, *arrays):
    rest = io.BytesIO()
    for array in (np.frombuffer(text.encode(), np.uint8), *arrays):
        np.save(rest, array)
    return struct.pack("<Q", rest.tell()) + rest.getvalue()
def forge(text, *inputs):
    os.write(wire_fd, message(text, np.zeros(3)))
    os._exit(0)
"""
CALL = '{"tuple": ["callback", 0, {"tuple": []}, {"dict": []}]}'
# What an answer does in `bad(f)`, and what is said; `f` is a function of the tester's.
BAD = {
    "exit": ("os._exit(3)", r"ended its own process with exit status 3"),
    "crash": ("import ctypes\nreturn ctypes.string_at(0)", r"ended its own process by signal SIG"),
    "pipes": ("os.closerange(3, 100)\ntime.sleep(60)", "closed its connection"),
    "loop": ("while True: pass", r"no result after 0\.5 s: an endless loop"),
    # A reply fills the pipe, and the answer reads nothing of it for a while: the time on the wire counts.
    "slow wire": ("while True:\n    wire.send('callback', 0, (), {})\n    time.sleep(0.4)", "no result after"),
    "drops": ("while True:\n    os.write(wire_fd, bytes(1))\n    time.sleep(0.1)", "no result after"),
    "messages": (
        "def drain():\n    while True: os.read(wire_fd, 1 << 16)\n"
        "threading.Thread(target=drain, daemon=True).start()\n"
        f"while True: os.write(wire_fd, message({CALL!r}))",
        "no result after",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_process_that_misbehaves_is_replaced(bad):
    body, said = BAD[bad]
    start = time.monotonic()
    source = SOURCE + FORGE + "def bad(f):\n    " + body.replace("\n", "\n    ")
    with sandbox_with(source, seconds_per_call=0.5 if "no result" in said else 10) as sandbox:
        out, cache = sandbox.function("double_forward", "cache")(np.ones(1))
        with pytest.raises(AnswerDied, match=said):
            sandbox.function("bad")(lambda: time.sleep(0.002) or np.zeros(50_000))
        with pytest.raises(AnswerError, match="with it what it kept"):
            sandbox.function("double_backward")(out, cache)
        assert sandbox.function("sleep")(0) == 0
    assert time.monotonic() - start < 20


def test_endless_call_is_given_up_after_the_second_and_time_in_callbacks_does_not_count():
    with sandbox_with(seconds_per_call=0.5) as hasty:
        for seconds, said in ((60, "no result"), (60, "no result"), (0, "not tried again")):
            with pytest.raises(AnswerDied, match=said):
                hasty.function("sleep")(seconds)
        assert hasty.function("apply")(lambda x: time.sleep(0.4) or x, 1.0) == 2.0


@pytest.mark.parametrize("callbacks", [0, -1], ids=["calls", "endless callbacks"])
def test_time_of_all_calls_and_of_callbacks_is_limited(callbacks):
    source = SOURCE + "def bad(f, n):\n    while n: f(); n -= 1\n    time.sleep(0.2)"
    said = r"more than 0\.4 s in all"
    with sandbox_with(source, seconds_in_all=0.4) as sandbox, pytest.raises(AnswerDied, match=said):
        for _ in range(5):
            sandbox.function("bad")(lambda: time.sleep(0.01), callbacks)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit address space")
def test_memory_is_limited(sandbox):
    with pytest.raises(AnswerError, match="MemoryError"):
        sandbox.run("bytearray(4 << 30)")
    assert sandbox.function("sleep")(0) == 0


def test_source_that_ends_the_process_at_once_or_only_when_it_is_run_again(sandbox):
    with pytest.raises(AnswerDied):
        sandbox.run("os._exit(0)")
    assert sandbox.function("sleep")(0) == 0  # it is not loaded again
    sandbox.run(f"def leave():\n    os._exit(3)\nif time.time() > {time.time() + 1}:\n    os._exit(0)")
    time.sleep(1.1)
    with pytest.raises(AnswerDied, match="exit status 3"):
        sandbox.function("leave")()
    for _ in range(2):
        with pytest.raises(AnswerDied, match="when its code was run again"):
            sandbox.function("sleep")(0)


PCG64 = '{"dict": [["bit_generator", "PCG64"], ["state", {"dict": [["state", -1], ["inc", -1]]}]]}'
RESULTS = [f'{{"generator": {PCG64}}}, {{"dict": []}}', '[{"array": 0}, {"array": 0}], {"dict": []}', "null, 3"]
RESULTS += [f'null, {{"dict": [[{changed}]]}}' for changed in ('"abc", null', "7, null", '0, {"array": 0}')]
FORGED = [f'{{"tuple": ["done", {result}]}}' for result in RESULTS]
FORGED += [f'{{"tuple": [{values}]}}' for values in ("", '"raised", "ValueError"', '"callback", "x", 5')]
FORGED += ['{"answer": {"nothing": 1}}', "[" * 100_000, "3"]


@pytest.mark.parametrize("text", FORGED)
def test_forged_message_ends_the_process_and_nothing_else(sandbox, text):
    sandbox.run(FORGE)
    x = np.zeros(2)
    with pytest.raises(AnswerDied, match="broke its own process"):
        sandbox.function("forge")(text, x)
    assert x.tolist() == [0, 0]
    assert sandbox.function("sleep")(0) == 0


def test_message_of_an_error_is_cut_and_an_unknown_function_is_not_called(sandbox):
    sandbox.run(FORGE)
    with pytest.raises(AnswerError) as error:
        sandbox.function("forge")(json.dumps({"tuple": ["raised", 200 * "K", 20_000 * "m"]}))
    assert len(str(error.value)) < 9000
    with pytest.raises(AnswerDied):
        sandbox.function("forge")(CALL.replace("0", "99"))
    assert sandbox.function("sleep")(0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["0o700", "0o300"], ids=["deep", "unreadable"])
def test_its_directory_is_removed_however_it_is_nested(isolated, mode):
    with Sandbox() as sandbox:
        sandbox.run(f"import os\nfor _ in range(1500):\n    os.mkdir('a', {mode})\n    os.chdir('a')")
    assert not Path(sandbox._scratch).exists()
