"""Values and messages between the tests and an answer."""

import io
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyprune.course.child import Wire

NUMBERS = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.complex128]),
    hnp.array_shapes(min_side=0),
)
VALUES = st.recursive(
    NUMBERS | st.none() | st.text() | ARRAYS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def sent(value, answer=None):
    """Send a value from the answer to the tests."""
    answer = answer or Wire(io.BytesIO(), "answer")
    answer.send(value)
    answer.stream.seek(0)
    return Wire(answer.stream, "tests").receive()[0][0]


def same(a, b):
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b and type(b) is (np.complex128 if type(a) is complex else type(a))


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a machine with other work
@given(VALUES)
def test_values_arrive_as_they_were(value):
    assert same(value, sent(value))


def test_views_numpy_numbers_nan_and_generators_arrive():
    assert same(np.arange(6.0).reshape(2, 3).T.copy(), sent(np.arange(6.0).reshape(2, 3).T))
    for number in (np.float32(1.5), np.array(1.5, np.float32)):  # an array without axes arrives as a number
        assert same(np.float32(1.5), sent(number))
    assert np.isnan(sent(float("nan")))
    arrived = sent(np.zeros(3))
    arrived += 1  # it can be written to
    rng = np.random.default_rng(7)
    rng.random(5)
    assert sent(rng).random() == rng.random()


def test_functions_and_other_objects_stay():
    thing, answer = object(), Wire(io.BytesIO(), "answer")
    proxies = sent([len, thing], answer)
    assert {proxy.owner for proxy in proxies} == {"answer"}
    assert [answer.find(proxy.number) for proxy in proxies] == [len, thing]
    tests = Wire(answer.stream, "tests")
    answer.stream.seek(0)
    answer.stream.truncate()
    tests.send(*proxies)
    answer.stream.seek(0)
    assert answer.receive()[0] == (len, thing)
    with pytest.raises(LookupError, match="process ended"):
        answer.find(proxies[1].number + 1)


@pytest.mark.parametrize("dtype", [object, [("a", int)], "datetime64[s]"])
def test_arrays_of_other_things_are_refused(dtype):
    with pytest.raises(TypeError, match="cannot be handed over"):
        sent(np.zeros(2, dtype))


def npy(dtype, shape, data):
    """A file with an array, as it is stored or as it claims to be."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def frame(text, rest=b"", size=None):
    message = npy("|u1", (len(text),), text) + rest
    return struct.pack("<Q", size or len(message)) + message


PICKLES = [frame(b'{"array": 0}', npy(dtype, (1,), bytes(16))) for dtype in ("O", "V8", "f8,f8", "M8[s]")]
LARGE = [frame(b"1", size=1 << 40), frame(b"1" + b" " * (1 << 24)), frame(b"1", npy("<f8", (1 << 60,), bytes(8)))]


@pytest.mark.parametrize("data", PICKLES + LARGE, ids=lambda data: str(data)[:80])
def test_arrays_of_objects_and_what_would_fill_the_memory_do_not_arrive(data):
    """What else may be wrong with a message is in the tests of the sandbox."""
    with pytest.raises((ValueError, MemoryError)):
        Wire(io.BytesIO(data), "tests").receive()
