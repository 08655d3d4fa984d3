"""What single kernels promise beyond the contract: blocks, bits, memory that is given up, ids that change."""

import math

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu.dropout import kept
from tinyprune.kernels.cpu.jit import SMALL
from tinyprune.kernels.cpu.updates import COLUMNS
from tinyprune.ops.adamw import AdamConstants
from tinyprune.ops.dropout import keep_mask

from ..compare import adamw_update, assert_close, assert_same_bits
from .test_matmul import draw, each_dtype

cpu = get_backend("numba")
ADAM = {"lr": 0.1, "decay": 0.3, "constants": AdamConstants(0.8, 0.95, eps=1e-3, step=3, grad_scale=0.7)}


@each_dtype
@pytest.mark.parametrize("size", [0, COLUMNS - 1, COLUMNS + 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL + 777])
def test_squared_norm_of_sizes_around_those_of_a_block(dtype, size):
    (x,) = draw(dtype, (size,))
    assert cpu.squared_norms([x]) == pytest.approx([math.fsum(np.square(x, dtype=np.float64))], rel=1e-13)


def test_squares_of_float32_neither_overflow_nor_vanish():
    x = np.array([1e30, 1e-30], np.float32)
    assert cpu.squared_norms([x, x[1:]]) == [float(x[0]) ** 2, float(x[1]) ** 2]
    assert cpu.squared_norms([np.array([1e200, 1.0])]) == [math.inf]


def test_one_row_in_the_place_of_many_is_added_where_it_lies():
    a, row = draw(np.float32, (5, 61, 67), (61, 67))
    assert a.size >= SMALL
    many = np.broadcast_to(row, a.shape)
    assert_same_bits([cpu.add(a, many), cpu.add(many, many)], [a + row, np.ascontiguousarray(many + row)])


def test_an_entry_stays_up_to_exactly_its_hash():
    # At the lower limit the entry is kept, at the other dropped.
    keys, (low, high) = (3_000_000_019, 4_100_000_003), (0, 2**32 - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keep_mask((1,), middle / 2**32, keys)[0] else (low, middle)
    assert [kept(0, *map(np.uint32, (*keys, limit))) for limit in (low, high)] == [True, False]


def test_each_word_is_summed_in_the_order_of_its_places():
    """In float32 the order shows: 2²⁴ swallows a 1 that comes after it."""
    dout = np.array([2**24, 1, 1, -(2**24), 1], np.float32)[:, None]
    words = np.array([2, 2, 2, 2, 0])
    for order, total in ((np.arange(5), 0), (np.array([1, 2, 0, 3, 4]), 2)):
        _, kept = cpu.embedding_forward(words[order], np.ones((3, 1), np.float32))
        assert cpu.embedding_backward(dout[order], kept)[2, 0] == total


@each_dtype
@pytest.mark.parametrize("order", ["C", "F"])
def test_logits_that_may_be_overwritten(dtype, order):
    (logits,) = draw(dtype, (40, 37))
    targets = np.arange(40) % 37
    expected, kept = cpu.cross_entropy_forward(logits, targets)
    given_up, read_only = np.array(logits, order=order), logits.copy()
    loss, given_up_kept = cpu.cross_entropy_forward(given_up, targets, overwrite=True)
    dlogits = cpu.cross_entropy_backward(1.0, given_up_kept)
    assert_same_bits([loss, dlogits], [expected, cpu.cross_entropy_backward(1.0, kept)])
    assert np.shares_memory(dlogits, given_up) == (order == "C")
    read_only.flags.writeable = False
    assert_same_bits(cpu.cross_entropy_forward(read_only, targets, overwrite=True)[0], expected)
    assert_same_bits(read_only, logits)


@each_dtype
@pytest.mark.parametrize("V", [5, 64, 71])
def test_logits_far_apart_and_far_from_zero(dtype, V):
    """exp overflows for most of them, and underflows for most of their differences."""
    logits = draw(dtype, (50, V))[0] * dtype(1000) + dtype(20000)
    targets = np.argmax(logits, axis=-1)
    targets[::2] = 3
    loss, kept = cpu.cross_entropy_forward(logits, targets)
    expected, expected_kept = ops.cross_entropy_forward(logits.astype(float), targets)
    assert_close(loss, expected, dtype)
    expected = ops.cross_entropy_backward(50, expected_kept)
    assert_close(cpu.cross_entropy_backward(50, kept), expected, dtype)
    assert_close(cpu.log_softmax(logits), ops.log_softmax(logits.astype(float)), dtype)


@each_dtype
@pytest.mark.parametrize("operation", ["gelu", "swiglu"])
@pytest.mark.parametrize("count", [3, 64])
def test_activations_of_numbers_far_from_zero(dtype, operation, count):
    """Alone and in whole vectors: no exponential overflows, and what is far below zero becomes 0."""
    a = np.resize(np.array([-1e6, -90, -20, 0, 20, 90, 1e6], dtype), count)
    arguments = (a,) if operation == "gelu" else (a, np.full_like(a, 2))
    results = []
    for backend, inputs in ((cpu, arguments), (ops, [x.astype(float) for x in arguments])):
        out, kept = getattr(backend, f"{operation}_forward")(*inputs)
        results.append([out, getattr(backend, f"{operation}_backward")(np.ones_like(out), kept)])
    assert_close(*results, dtype)
    assert not results[0][0][a == -1e6].any()


def test_losses_are_summed_in_float64_and_a_row_of_minus_inf_is_nan():
    """A mean of a hundred thousand equal losses: their float32 sum would be off in the fifth digit."""
    loss, _ = cpu.cross_entropy_forward(np.zeros((100_000, 3), np.float32), np.zeros(100_000, int))
    assert loss == np.float32(np.log(np.float32(3)))
    loss, kept = cpu.cross_entropy_forward(np.array([[0.0, 1.0], [-np.inf, -np.inf]]), np.zeros(2, int))
    dlogits = cpu.cross_entropy_backward(1.0, kept)
    assert np.isnan(loss) and np.isnan(dlogits[1]).all() and np.isfinite(dlogits[0]).all()
    with pytest.raises(ValueError, match=r"logits must have at least one entry in a row, got shape \(2, 0\)"):
        cpu.log_softmax(np.ones((2, 0)))


def test_updates_have_the_textbooks_bits_in_float32():
    """Every entry is computed in float32, rounded after each operation."""
    arrays = [np.abs(x) for x in draw(np.float32, *[(1001,)] * 4)]
    expected = [x.copy() for x in arrays]
    adamw_update(cpu, *arrays, **ADAM)
    adamw_update(ops, *expected, **ADAM)
    assert_same_bits(arrays, expected)


@pytest.mark.parametrize("bad", ["gaps", "order", "read-only"])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_updates_refuse_what_they_cannot_write_to_and_change_nothing(place, bad):
    arrays = [np.ones((3, 4)) for _ in range(4)]
    arrays[place] = {"gaps": np.ones((3, 8))[:, ::2], "order": np.ones((4, 3)).T, "read-only": np.ones((3, 4))}[bad]
    arrays[place].flags.writeable = bad != "read-only"
    with pytest.raises(ValueError, match="is updated in place and must be writeable and C-contiguous"):
        adamw_update(cpu, *arrays, **ADAM)
    assert all((x == 1).all() for x in arrays)
