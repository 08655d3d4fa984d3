"""A process of its own for an answer."""

import json
import os
import sys
import time

import numpy as np
import pytest

from tinyprune.course.sandbox import AnswerDied, AnswerError, Limits, Sandbox

SOURCE = """
import time
import numpy as np

calls = 0

def double_forward(x):
    global calls
    calls += 1
    return 2 * x, {"x": x, "calls": calls}

def double_backward(dout, cache):
    cache["calls"] += 1
    return 2 * dout, cache["calls"]

def add_in_place(x, parameters):
    x += 1
    parameters["W"] *= 2

def apply(f, x, **options):
    return f(x) + f(x, **options)

def hand_back(thing, f):
    return f(thing)

def draw(rng):
    return rng.random(3)

def sleep(seconds):
    time.sleep(seconds)
    return seconds

def fail(x):
    return deeper(x)

def deeper(x):
    raise ValueError(f"no {x}")

def leave():
    import os
    os._exit(3)

def crash():
    import ctypes
    return ctypes.string_at(0)

def make(kind):
    return {"function": len, "object": object(), "array": np.array([object()])}[kind]

not_a_function = 3
"""


@pytest.fixture
def sandbox():
    with Sandbox(Limits(seconds_per_call=10)) as sandbox:
        sandbox.run(SOURCE)
        yield sandbox


@pytest.fixture
def hasty():
    """Gives up after half a second."""
    with Sandbox(Limits(seconds_per_call=0.5)) as sandbox:
        sandbox.run(SOURCE)
        yield sandbox


def test_runs_elsewhere(sandbox):
    sandbox.run("import os\ndef process():\n    return os.getpid()")
    assert sandbox.function("process")() not in (os.getpid(), os.getppid())


def test_cache_stays_there_and_is_the_same_each_time(sandbox):
    out, cache = sandbox.function("double_forward", "cache")(np.arange(3.0))
    assert out.tolist() == [0, 2, 4]
    backward = sandbox.function("double_backward")
    assert [backward(np.ones(2), cache)[1] for _ in range(3)] == [2, 3, 4]


def test_arrays_that_it_modifies_are_modified_here(sandbox):
    x, W = np.zeros(3), np.ones((2, 2))
    sandbox.function("add_in_place")(x, {"W": W, "b": np.ones(1)})
    assert x.tolist() == [1, 1, 1]
    assert W.tolist() == [[2, 2], [2, 2]]


def test_calls_back(sandbox):
    seen = []

    def f(x, y=0):
        seen.append((x, y))
        return x + y

    assert sandbox.function("apply")(f, 2.0, y=5.0) == 9.0
    assert seen == [(2.0, 0), (2.0, 5.0)]


def test_error_of_a_callback_reaches_both_sides(sandbox):
    def f(x):
        raise ValueError("the budget is used")

    with pytest.raises(AnswerError, match="ValueError: the budget is used"):
        sandbox.function("apply")(f, 1.0)
    assert sandbox.function("sleep")(0) == 0


def test_time_in_callbacks_does_not_count(hasty):
    assert hasty.function("apply")(lambda x: time.sleep(0.7) or x, 1.0) == 2.0


def test_what_cannot_travel_is_handed_back_as_itself(sandbox):
    thing = object()
    assert sandbox.function("hand_back")(thing, lambda other: other is thing) is True


def test_generator_goes_over_in_its_state(sandbox):
    assert np.array_equal(sandbox.function("draw")(np.random.default_rng(4)), np.random.default_rng(4).random(3))


def test_held_values_stay_there(sandbox):
    held = sandbox.hold(np.arange(4.0))
    out = sandbox.function("double_forward", "all")(held)
    assert not isinstance(out, tuple)
    assert sandbox.fetch(out)[0].tolist() == [0, 2, 4, 6]
    assert sandbox.fetch(held).tolist() == [0, 1, 2, 3]


def test_error_has_kind_message_and_the_answers_lines_only(sandbox):
    with pytest.raises(AnswerError) as error:
        sandbox.function("fail")("way")
    assert error.value.kind == "ValueError"
    assert "no way" in str(error.value)
    assert "in fail" in str(error.value)
    assert "in deeper\n    raise ValueError" in str(error.value)
    assert "child.py" not in str(error.value)


def test_syntax_error_is_shown(sandbox):
    with pytest.raises(AnswerError, match=r"(?s)SyntaxError.*mine\.py, line 2\n    def f\(:"):
        sandbox.run("x = 1\ndef f(:\n", "mine.py")


def test_what_came_before_an_error_is_there(sandbox):
    with pytest.raises(AnswerError, match="ZeroDivisionError"):
        sandbox.run("def early():\n    return 1\n1 / 0\ndef late():\n    return 2")
    assert sandbox.has("early")
    assert not sandbox.has("late")
    assert not sandbox.has("not_a_function")


@pytest.mark.parametrize("function", ["leave", "crash"])
def test_ended_process_is_replaced(sandbox, function):
    out, cache = sandbox.function("double_forward", "cache")(np.ones(1))
    with pytest.raises(AnswerDied, match=r"ended its own process (with exit status 3|by signal SIG)"):
        sandbox.function(function)()
    assert sandbox.function("sleep")(0) == 0
    with pytest.raises(AnswerDied, match="with it what it kept"):
        sandbox.function("double_backward")(out, cache)


def test_source_that_ends_the_process_is_not_loaded_again(sandbox):
    with pytest.raises(AnswerDied):
        sandbox.run("import os\nos._exit(0)")
    assert sandbox.function("sleep")(0) == 0


def test_source_that_ends_the_process_only_when_it_is_run_again(sandbox):
    sandbox.run(f"import os, time\nif time.time() > {time.time() + 1}:\n    os._exit(0)")
    time.sleep(1.1)
    with pytest.raises(AnswerDied, match="exit status 3"):
        sandbox.function("leave")()
    for _ in range(2):
        with pytest.raises(AnswerDied, match="when its code was run again"):
            sandbox.function("sleep")(0)


def test_endless_call_is_ended_and_given_up_after_the_second(hasty):
    sleep = hasty.function("sleep")
    for _ in range(2):
        with pytest.raises(AnswerDied, match=r"no result after 0\.5 s: an endless loop"):
            sleep(60)
    with pytest.raises(AnswerDied, match="not tried again"):
        sleep(0)
    assert hasty.function("double_forward")(1.0)[0] == 2.0


def test_time_of_all_calls_is_limited():
    with Sandbox(Limits(seconds_in_all=0.4)) as sandbox:
        sandbox.run(SOURCE)
        sandbox.function("sleep")(0.2)
        with pytest.raises(AnswerDied):
            for _ in range(3):
                sandbox.function("sleep")(0.2)
        with pytest.raises(AnswerDied, match=r"more than 0\.4 s in all"):
            sandbox.function("double_forward")(1.0)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not limit address space")
def test_memory_is_limited(sandbox):
    sandbox.run("def hoard():\n    return len(bytearray(4 << 30))")
    with pytest.raises(AnswerError, match="MemoryError"):
        sandbox.function("hoard")()
    assert sandbox.function("sleep")(0) == 0


@pytest.mark.parametrize("kind", ["function", "array"])
def test_what_may_not_come_back_is_refused(sandbox, kind):
    with pytest.raises(AnswerError):
        sandbox.function("make")(kind)


def test_what_it_prints_is_kept_and_cut():
    with Sandbox(Limits(output_characters=100)) as sandbox:
        assert sandbox.run("print('hello')") == "hello\n"
        assert sandbox.run("for i in range(1000):\n    print(i)").endswith("… (cut)\n")
        assert sandbox.run("pass") == ""


def test_process_that_closes_its_pipes_is_ended(sandbox):
    sandbox.run("import os, time\ndef close():\n    os.closerange(3, 100)\n    time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(AnswerDied, match="closed the pipes"):
        sandbox.function("close")()
    assert time.monotonic() - start < 10
    assert sandbox.function("sleep")(0) == 0


def test_pipes_do_not_block_although_select_said_that_they_are_ready(sandbox):
    assert not os.get_blocking(sandbox._from_child)
    assert not os.get_blocking(sandbox._to_child)


FORGE = """
import gc, os, struct
child = next(o for o in gc.get_objects() if type(o).__name__ == "Child")
def forge(head, rest, *inputs):
    os.write(child.outgoing, struct.pack("<QQ", len(head), len(rest)) + head.encode() + bytes(rest))
    os._exit(0)
"""


@pytest.mark.parametrize(
    "head",
    [
        '{"value": {"kept": Infinity}, "arrays": []}',
        '{"value": {"list": ' * 400 + "[]" + "}}" * 400,
        '{"value": null, "changed": {"abc": null}, "arrays": []}',
        '{"value": null, "changed": {"7": null}, "arrays": []}',
        '{"value": null, "changed": {"0": {"array": 0}}, "arrays": [["<f8", [3]]]}',
        '{"value": null, "changed": 3, "arrays": []}',
        '{"value": {"list": [{"array": 0}, {"array": 0}]}, "arrays": [["<f8", [3]]]}',
        '{"value": {"generator": {"dict": {"bit_generator": "PCG64", "state": {"dict": {"state": -1, "inc": -1}}, '
        '"has_uint32": 0, "uinteger": 0}}}, "arrays": []}',
        '{"callback": 99, "value": {"tuple": [{"tuple": []}, {"dict": {}}]}, "arrays": []}',
        '{"callback": "x", "value": 5, "arrays": []}',
        '{"raised": {"kind": 1}, "arrays": []}',
        '{"arrays": []}',
    ],
)
def test_forged_message_ends_the_process_and_nothing_else(sandbox, head):
    sandbox.run(FORGE)
    x = np.zeros(2)
    with pytest.raises(AnswerDied, match="broke its own process"):
        sandbox.function("forge")(head, [0] * 24, x)
    assert x.tolist() == [0, 0]
    assert sandbox.function("sleep")(0) == 0


def test_what_an_error_says_is_cut(sandbox):
    sandbox.run(FORGE)
    with pytest.raises(AnswerError) as error:
        sandbox.function("forge")(
            json.dumps({"raised": {"kind": "K", "message": 10_000 * "m", "trace": 10_000 * "t"}, "arrays": []}), []
        )
    assert len(str(error.value)) < 9000


def test_time_on_the_wire_of_a_callback_counts(hasty):
    # a reply that fills the pipe, of which the answer reads nothing for a while
    hasty.run(
        FORGE + "import time\ndef slowly(f):\n    for _ in range(4):\n"
        "        child.send({'callback': 0}, ((), {}))\n        time.sleep(0.4)\n"
        "        from_tester = struct.unpack('<QQ', child.read(16))\n        child.read(sum(from_tester))\n"
    )
    with pytest.raises(AnswerDied, match="no result after"):
        hasty.function("slowly")(lambda: np.zeros(50_000))


def test_messages_without_end_are_ended(hasty):
    hasty.run(
        FORGE + "import threading\ndef flood(f, message):\n"
        "    def drain():\n        while True:\n            os.read(child.incoming.fileno(), 1 << 16)\n"
        "    threading.Thread(target=drain, daemon=True).start()\n"
        "    message = (struct.pack('<QQ', len(message), 0) + message.encode()) * 100\n"
        "    while True:\n        os.write(child.outgoing, message)\n"
    )
    message = '{"callback": 0, "value": {"tuple": [{"tuple": []}, {"dict": {}}]}, "arrays": []}'
    with pytest.raises(AnswerDied, match="no result after"):
        hasty.function("flood")(lambda: None, message)


def test_time_in_callbacks_is_limited():
    with Sandbox(Limits(seconds_in_callbacks=0.3)) as sandbox:
        sandbox.run("def ask(f):\n    while True:\n        f()")
        with pytest.raises(AnswerDied, match=r"more than 0\.3 s in functions that were given"):
            sandbox.function("ask")(lambda: time.sleep(0.1))


def test_disk_is_not_filled():
    with Sandbox(Limits(directory_bytes=1 << 20)) as sandbox:
        fill = "while True:\n    open(str(n), 'wb').write(bytes(10_000))\n    n += 1"
        with pytest.raises(AnswerDied, match="more than 1 MiB of files"):
            sandbox.run(f"n = 0\n{fill}")
        # nor a little with each call
        sandbox.run("n = 0\ndef fill():\n    global n\n    n += 1\n    open(str(n), 'wb').write(bytes(500_000))")
        with pytest.raises(AnswerDied, match="more than 1 MiB of files"):
            for _ in range(4):
                sandbox.function("fill")()


@pytest.mark.parametrize("mode", ["0o700", "0o300"], ids=["deep", "unreadable"])
def test_its_directory_goes_however_it_is_nested(mode):
    with Sandbox() as sandbox:
        sandbox.run(f"import os\nfor _ in range(1500):\n    os.mkdir('a', {mode})\n    os.chdir('a')")
        directory = sandbox._scratch
    assert not os.path.exists(directory)  # noqa: PTH110


def test_its_directory_goes_with_it():
    with Sandbox() as sandbox:
        sandbox.run("import os\nopen('note', 'w').write('x')\ndef where():\n    return os.getcwd()")
        directory = sandbox.function("where")()
        assert os.path.exists(directory)  # noqa: PTH110
    assert not os.path.exists(directory)  # noqa: PTH110


def test_own_environment_is_not_handed_over(monkeypatch):
    monkeypatch.setenv("A_SECRET", "42")
    with Sandbox(environment={"GIVEN": "1"}) as sandbox:
        sandbox.run("import os\ndef get(name):\n    return os.environ.get(name)")
        get = sandbox.function("get")
        assert (get("A_SECRET"), get("GIVEN")) == (None, "1")
