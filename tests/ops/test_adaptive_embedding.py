"""Adaptive embedding: the lookup written out, and the plain embedding as its special case."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from tinyprune.ops import (
    adaptive_embedding_backward,
    adaptive_embedding_forward,
    embedding_backward,
    embedding_forward,
)
from tinyprune.ops.adaptive_embedding import TEXTBOOK

WORDS, WIDTHS = [4, 3, 5], [6, 3, 2]


@pytest.fixture
def weights(rng):
    tables = [rng.standard_normal((words, width)) for words, width in zip(WORDS, WIDTHS, strict=True)]
    return tables, [rng.standard_normal((width, WIDTHS[0])) for width in WIDTHS[1:]]


def full_table(tables, projections):
    """Every word's vector at full width, (V, D)."""
    return np.concatenate([tables[0], *(t @ p for t, p in zip(tables[1:], projections, strict=True))])


def test_each_word_is_projected_from_its_cluster(weights):
    ids = np.array([[0, 3, 4], [6, 7, 11]])
    out, _ = adaptive_embedding_forward(ids, *weights)
    assert out.shape == (2, 3, 6)
    np.testing.assert_allclose(out, math.sqrt(6) * full_table(*weights)[ids], rtol=1e-13)


def test_one_cluster_is_the_plain_embedding(rng):
    E, ids = rng.standard_normal((9, 4)), rng.integers(0, 9, (3, 5))
    options = [{"dropout": 0.3, "rng": np.random.default_rng(5)} for _ in range(2)]
    plain, plain_cache = embedding_forward(ids, E, **options[0])
    out, cache = adaptive_embedding_forward(ids, [E], [], **options[1])
    np.testing.assert_array_equal(out, plain)
    dout = rng.standard_normal(out.shape)
    (dE,), dprojections = adaptive_embedding_backward(dout, cache)
    np.testing.assert_allclose(dE, embedding_backward(dout, plain_cache), rtol=1e-13)
    assert dprojections == []


def test_a_cluster_that_is_absent_has_gradient_zero(weights):
    out, cache = adaptive_embedding_forward(np.array([[0, 5]]), *weights)
    dtables, dprojections = adaptive_embedding_backward(np.ones_like(out), cache)
    assert dtables[1].any() and dprojections[0].any()
    assert dtables[2].shape == (5, 2) and not dtables[2].any() and not dprojections[1].any()


def test_dropout_takes_whole_words(weights):
    ids = np.tile(np.arange(12), (2, 1))
    out, _ = adaptive_embedding_forward(ids, *weights, dropout=0.5, rng=np.random.default_rng(2))
    kept = out.any(-1)
    np.testing.assert_array_equal(kept[0], kept[1])
    assert 0 < kept[0].sum() < 12
    evaluated, _ = adaptive_embedding_forward(ids, *weights, dropout=0.5)
    np.testing.assert_allclose(out, np.where(kept[..., None], 2 * evaluated, 0), rtol=1e-13)


@pytest.mark.parametrize("bad", [-1, 12])
def test_ids_out_of_range(bad, weights):
    with pytest.raises(ValueError, match="ids must lie in 0 … 11"):
        adaptive_embedding_forward(np.array([[0, bad]]), *weights)


def test_ids_that_are_not_integers_and_projections_that_are_missing(weights):
    tables, projections = weights
    with pytest.raises(ValueError, match="ids must be integers"):
        adaptive_embedding_forward(np.zeros((1, 2)), tables, projections)
    with pytest.raises(ValueError, match="projections must be 2, one for each table but the first, got 1"):
        adaptive_embedding_forward(np.zeros((1, 2), int), tables, projections[:1])


def test_parts_handed_in_are_the_ones_used(weights):
    """Backward too: twice the parts, four times the gradient of what lies behind them."""
    doubled = SimpleNamespace(
        linear_forward=lambda x, W: (2 * (x @ W), (x, W)),
        linear_backward=lambda dout, cache: (2 * (dout @ cache[1].T), 2 * (cache[0].T @ dout), None),
        sum_rows=lambda *arguments: 2 * TEXTBOOK.sum_rows(*arguments),
    )
    ids = np.array([[0, 3, 4], [6, 7, 11]])
    (out, cache), (got, got_cache) = (
        adaptive_embedding_forward(ids, *weights, parts=parts) for parts in (TEXTBOOK, doubled)
    )
    np.testing.assert_allclose(got, np.where(ids[..., None] < 4, 1, 2) * out, rtol=1e-13)
    expected_dtables, expected_dprojections = adaptive_embedding_backward(np.ones_like(out), cache)
    dtables, dprojections = adaptive_embedding_backward(np.ones_like(out), got_cache)
    for factor, dtable, expected in zip((2, 4, 4), dtables, expected_dtables, strict=True):
        np.testing.assert_allclose(dtable, factor * expected, rtol=1e-13)
    for dprojection, expected in zip(dprojections, expected_dprojections, strict=True):
        np.testing.assert_allclose(dprojection, 2 * expected, rtol=1e-13)
