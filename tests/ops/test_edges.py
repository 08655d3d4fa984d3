"""Edges of the operations: what their formulas do not say, and the contract does not ask."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.ops.adamw import AdamConstants


def test_results_are_new_arrays_or_the_views_that_are_promised(rng):
    x, m = rng.standard_normal((2, 4, 5)), rng.standard_normal((2, 3, 5))
    results = [ops.add(x, x), ops.concatenate([x]), ops.take_slices(x, [0, 1], 0)]
    results += [ops.positions_forward(x, x[0])[0]]
    assert not any(np.shares_memory(result, x) for result in results)
    assert ops.context_forward(None, x)[0] is x and ops.dropout_forward(x, 0.5, None)[0] is x
    context, kept = ops.context_forward(m, x)
    assert np.shares_memory(ops.context_backward(context, kept), context)
    assert ops.positions_backward(x, ops.positions_forward(x, x[0])[1])[0] is x
    assert ops.residual_backward(x, ops.residual_forward(x, x)[1])[0] is x


@pytest.mark.parametrize("operation", ["dropout", "residual", "embedding", "adaptive_embedding", "attention"])
def test_dropout_draws_two_keys_and_nothing_in_evaluation(operation, rng):
    x, ids = rng.standard_normal((2, 3, 2, 4)), np.arange(3)
    E = x[0, :, 0]
    words = {"embedding": (ids, E), "adaptive_embedding": (ids, [E], [])}
    arguments = ({"dropout": (x,), "residual": (x, x), "attention": (x, x, x)} | words)[operation]

    def run(rate, rng):
        name = "rate" if operation == "dropout" else "dropout"
        return getattr(ops, f"{operation}_forward")(*arguments, **{name: rate}, rng=rng)

    one, two = np.random.default_rng(8), np.random.default_rng(8)
    run(0.5, one)
    run(0.0, one)
    ops.dropout.draw_keys(two)
    assert one.bit_generator.state == two.bit_generator.state
    assert_array_equal(run(0.5, None)[0], run(0.0, one)[0])


def test_lists_of_arrays_have_to_be_of_one_length():
    constants = AdamConstants(0.9, 0.9, 1e-8, 1)
    with pytest.raises(ValueError):
        ops.adamw_updates([], [np.ones(1)], [], [], lr=1.0, multipliers=[], decays=[], constants=constants)
    with pytest.raises(ValueError, match="arrays must be at least one, got none"):
        ops.concatenate([])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_do_not_overflow(dtype):
    loss, kept = ops.cross_entropy_forward(np.array([[1e4, 0, -1e4]], dtype), np.array([2]))
    assert loss == 2e4
    assert_array_equal(ops.cross_entropy_backward(1.0, kept), [[1, 0, -1]])


def test_a_constant_vector_is_normalised_to_its_bias():
    out, kept = ops.layernorm_forward(np.full((1, 4), 3.0), np.ones(4), np.arange(4.0))
    assert_array_equal(out[0], np.arange(4.0))
    assert np.isfinite(ops.layernorm_backward(np.ones((1, 4)), kept)[0]).all()


def test_squared_norm_is_summed_in_float64_in_the_order_of_the_indices():
    one_large = np.concatenate([[2**13], np.ones(1001)]).astype(np.float32)
    assert ops.squared_norm(one_large) == 2**26 + 1001
    x = np.random.default_rng(0).standard_normal((300, 70)).astype(np.float32)
    for same in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        assert ops.squared_norm(same) == ops.squared_norm(x)
    for large in (np.full(4, 1.2e154), np.array([1.0, -np.inf])):
        assert ops.squared_norm(large) == math.inf
    assert math.isnan(ops.squared_norm(np.array([np.nan, np.inf]))) and ops.squared_norms([]) == []


def test_without_words_no_row_has_a_gradient():
    assert_array_equal(ops.sum_rows(np.zeros((0, 3)), np.zeros(0, int), 2), np.zeros((2, 3)))


def test_one_cluster_is_the_plain_embedding_and_softmax(rng):
    E, bias, x = rng.standard_normal((9, 4)), rng.standard_normal(9), rng.standard_normal((3, 5, 4))
    ids = rng.integers(0, 9, (3, 5))
    plain, kept = ops.embedding_forward(ids, E, dropout=0.3, rng=np.random.default_rng(5))
    out, adaptive_kept = ops.adaptive_embedding_forward(ids, [E], [], dropout=0.3, rng=np.random.default_rng(5))
    assert_array_equal(out, plain)
    (dE,), dprojections = ops.adaptive_embedding_backward(x, adaptive_kept)
    assert_allclose(dE, ops.embedding_backward(x, kept), rtol=1e-13)

    logits, linear = ops.linear_forward(x, E.T, bias)
    loss, kept = ops.cross_entropy_forward(logits, ids)
    expected = ops.linear_backward(ops.cross_entropy_backward(0.7, kept), linear)
    got, kept = ops.adaptive_softmax_forward(x, ids, [E], [], np.zeros((0, 4)), np.zeros(0), [bias])
    dx, (dE,), no_projections, dcluster_weight, dcluster_bias, (dbias,) = ops.adaptive_softmax_backward(0.7, kept)
    assert got == pytest.approx(loss, rel=1e-14) and dprojections == no_projections == []
    assert dcluster_weight.shape == (0, 4) and dcluster_bias.shape == (0,)
    for one, other in zip((dx, dE.T, dbias), expected, strict=True):
        assert_allclose(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_heads_that_are_not_read_have_no_gradient_and_any_integers_are_an_index(backend, rng):
    own, x = get_backend(backend), rng.standard_normal((2, 3, 4, 5))
    for index in ([3, 1, 3], (3, 1, 3), np.array([3, 1, 3], np.uint8)):
        out, kept = own.repeat_heads_forward(x, index)
        assert_array_equal(out, np.stack([x[:, :, 3], x[:, :, 1], x[:, :, 3]], axis=2))
        dx = own.repeat_heads_backward(out, kept)
        assert_array_equal(dx, x * np.array([0, 1, 0, 2])[:, None])
    for index, message in (
        ([0.0], r"index must be \(H,\), integers, got float64 \(1,\)"),
        ([[0]], r"got int64 \(1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            own.repeat_heads_forward(x, index)
