"""Embedding: rows times √D, repeated words, word dropout, bad ids."""

import math

import numpy as np
import pytest

from tinyprune.ops import embedding_backward, embedding_forward
from tinyprune.ops.embedding import sum_rows


def test_rows_are_looked_up_and_scaled(rng):
    E, ids = rng.standard_normal((7, 4)), np.array([[6, 0, 6], [3, 3, 1]])
    out, _ = embedding_forward(ids, E)
    assert out.shape == (2, 3, 4)
    for b, t in np.ndindex(ids.shape):
        np.testing.assert_array_equal(out[b, t], E[ids[b, t]] * math.sqrt(4))


def test_a_repeated_word_gets_the_sum_and_an_absent_one_nothing(rng):
    E, ids = rng.standard_normal((7, 4)), np.array([[6, 0, 6], [3, 6, 1]])
    out, cache = embedding_forward(ids, E)
    dout = rng.standard_normal(out.shape)
    expected = np.zeros_like(E)
    np.add.at(expected, ids, dout * math.sqrt(4))
    np.testing.assert_allclose(embedding_backward(dout, cache), expected)
    assert not expected[[2, 4, 5]].any()


def test_sum_rows_of_nothing():
    np.testing.assert_array_equal(sum_rows(np.zeros((0, 3)), np.zeros(0, int), 2), np.zeros((2, 3)))


def test_dropout_takes_whole_words_wherever_they_stand():
    V = 400
    E = np.ones((V, 2))
    ids = np.concatenate([np.arange(V), np.arange(V)[::-1]])[None]
    out, cache = embedding_forward(ids, E, dropout=0.25, rng=np.random.default_rng(3))
    kept = out[0, :V, 0] != 0
    np.testing.assert_array_equal(out[0, V:, 0][::-1] != 0, kept)
    np.testing.assert_allclose(out[0, :V], kept[:, None] * np.full(2, math.sqrt(2) / 0.75))
    assert 0.65 < kept.mean() < 0.85
    dE = embedding_backward(np.ones_like(out), cache)
    np.testing.assert_allclose(dE, 2 * out[0, :V])


def test_evaluation_has_no_dropout(rng):
    E, ids = rng.standard_normal((5, 3)), np.arange(5)
    np.testing.assert_array_equal(embedding_forward(ids, E, dropout=0.9)[0], embedding_forward(ids, E)[0])


@pytest.mark.parametrize("bad", [-1, 5])
def test_ids_out_of_range(bad):
    with pytest.raises(ValueError, match=r"ids must lie in 0 … 4, got .*" + str(bad)):
        embedding_forward(np.array([[0, bad]]), np.ones((5, 3)))


def test_ids_that_are_not_integers():
    with pytest.raises(ValueError, match="ids must be integers, got dtype float64"):
        embedding_forward(np.array([[0.0, 1.0]]), np.ones((5, 3)))
