"""Values and messages between the tests and an answer."""

import io
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyprune.course.wire import Far, decode, encode, pack, unpack

NUMBERS = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.complex128]),
    hnp.array_shapes(min_dims=0, min_side=0),
)
VALUES = st.recursive(
    NUMBERS | st.none() | st.text() | ARRAYS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def sent(value, keep=None, mine=None):
    arrays = []
    head = {"value": encode(value, arrays, keep)}
    head, arrays = unpack(io.BytesIO(pack(head, arrays)).read)
    return decode(head["value"], arrays, Far, mine)


def same(a, b):
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a machine with other work
@given(VALUES)
def test_values_arrive_as_they_were(value):
    assert same(value, sent(value))


def test_views_numpy_numbers_nan_and_generators_arrive():
    assert same(np.arange(6.0).reshape(2, 3).T.copy(), sent(np.arange(6.0).reshape(2, 3).T))
    assert same(np.float32(1.5), sent(np.float32(1.5)))
    assert np.isnan(sent(float("nan")))
    arrived = sent(np.zeros(3))
    arrived += 1  # it can be written to
    rng = np.random.default_rng(7)
    rng.random(5)
    assert sent(rng).random() == rng.random()


def test_functions_and_other_objects_stay():
    stayed = []

    def keep(thing):
        stayed.append(thing)
        return len(stayed) - 1

    thing = object()
    function, far = sent([len, thing], keep)
    assert isinstance(function, Far) and isinstance(far, Far)
    assert sent((function, far), mine=stayed.__getitem__) == (len, thing)


@pytest.mark.parametrize("dtype", [object, [("a", int)], "datetime64[s]"])
def test_arrays_of_other_things_are_refused(dtype):
    with pytest.raises(TypeError, match="cannot be handed over"):
        encode(np.zeros(2, dtype), [], None)


def frame(head, rest=b"", sizes=None):
    return struct.pack("<QQ", *(sizes or (len(head), len(rest)))) + head + rest


def array(dtype, shape, size):
    """A message with one array of `size` bytes."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    return frame(
        b'{"arrays": 1}', b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(size)
    )


PICKLES = [array(dtype, "(1,)", 16) for dtype in ("O", "V8", "f8,f8", "M8[s]")]
LARGE = [frame(b"", sizes=(1 << 40, 0)), frame(b'{"arrays": 0}' + b" " * (1 << 24)), array("<f8", f"({1 << 60},)", 8)]


@pytest.mark.parametrize("data", PICKLES + LARGE, ids=lambda data: str(data)[:80])
def test_arrays_of_objects_and_what_would_fill_the_memory_do_not_arrive(data):
    """What else may be wrong with a message is in the tests of the sandbox."""
    with pytest.raises((ValueError, MemoryError)):
        unpack(io.BytesIO(data).read)
