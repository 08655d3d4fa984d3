"""Adaptive embedding of compiled parts: against the textbook; ragged and absent clusters, dropout, bad arguments."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.adaptive_embedding import adaptive_embedding_backward, adaptive_embedding_forward
from tinyprune.kernels.cpu.embedding import sum_rows
from tinyprune.ops.embedding import sum_rows as ops_sum_rows

from .compare import (
    LARGE,
    assert_close,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    in_float64,
    leading,
    seeds,
)

# (words, widths) of the clusters; the first width is the model's
clusterings = st.sampled_from(
    [
        ([9], [5]),
        ([1, 1], [1, 1]),
        ([4, 3, 5], [6, 3, 2]),
        ([2, 0, 61], [37, 13, 1]),
        ([64, 1, 7, 131], [33, 16, 8, 3]),
    ]
)


def weights(dtype, words, widths, seed=0):
    shapes = [*zip(words, widths, strict=True), *((width, widths[0]) for width in widths[1:])]
    arrays = draw(seed, dtype, *shapes)
    return arrays[: len(words)], arrays[len(words) :]


def inputs(dtype, first=(3, 20), words=(4, 3, 5), widths=(6, 3, 2), seed=0):
    tables, projections = weights(dtype, words, widths, seed)
    (dout,) = draw(seed + 1, dtype, (*first, widths[0]))
    return np.asarray(np.random.default_rng(seed).integers(0, sum(words), first)), tables, projections, dout


def there_and_back(forward, backward, ids, tables, projections, dout, rate=0.0, seed=0):
    out, cache = forward(ids, tables, projections, dropout=rate, rng=np.random.default_rng(seed))
    dtables, dprojections = backward(dout, cache)
    return out, tuple(dtables), tuple(dprojections)


def kernel(*arguments):
    return there_and_back(adaptive_embedding_forward, adaptive_embedding_backward, *arguments)


def textbook(ids, tables, projections, dout, *options):
    wide = [list(map(in_float64, arrays)) for arrays in (tables, projections)]
    return there_and_back(
        ops.adaptive_embedding_forward, ops.adaptive_embedding_backward, ids, *wide, in_float64(dout), *options
    )


@each_dtype
@few
@given(first=leading, clustering=clusterings, rate=st.sampled_from([0.0, 0.4]), seed=seeds)
@example(first=LARGE, clustering=([64, 1, 7, 131], [33, 16, 8, 3]), rate=0.3, seed=0)
def test_like_the_textbook(dtype, first, clustering, rate, seed):
    arguments = *inputs(dtype, first, *clustering, seed), rate, seed
    assert_close(kernel(*arguments), textbook(*arguments), dtype)


@pytest.mark.parametrize("word", [0, 5, 11])
def test_words_of_one_cluster_only(word):
    _, *others = inputs(np.float64, (7,))
    assert_close(kernel(np.full(7, word), *others), textbook(np.full(7, word), *others), np.float64)


def test_ids_of_any_integer_type():
    ids, *others = inputs(np.float64)
    for dtype in (np.uint8, np.int16, np.int32, np.uint64):
        assert_same_bits(kernel(ids.astype(dtype), *others, 0.2, 3), kernel(ids, *others, 0.2, 3))


@each_dtype
def test_threads_do_not_matter(dtype):
    arguments = inputs(dtype, (2000,), (300, 200, 411), (64, 32, 16))
    assert_threads_do_not_matter(lambda: kernel(*arguments, 0.3, 5))


def test_views():
    ids, tables, projections, dout = inputs(np.float64, (6, 10), widths=(12, 6, 4))
    arguments = (
        ids[::2],
        [tables[0][:, ::2], tables[1][:, 1:4], np.asfortranarray(tables[2])[:, 2:]],
        [projections[0][1:4, 6:], projections[1][:2, ::-2]],
        dout[::2, :, 3:9],
    )
    assert_close(kernel(*arguments), textbook(*arguments), np.float64)


def test_backward_twice_and_nothing_is_modified():
    ids, tables, projections, dout = inputs(np.float64)
    arrays = (ids, *tables, *projections, dout)
    copies = tuple(array.copy() for array in arrays)
    _, cache = adaptive_embedding_forward(ids, tables, projections, dropout=0.3, rng=np.random.default_rng(0))
    first, again = (tuple(map(tuple, adaptive_embedding_backward(dout, cache))) for _ in range(2))
    assert_same_bits(again, first)
    assert_same_bits(arrays, copies)


def test_bad_arguments():
    ids, tables, projections, _ = inputs(np.float64)
    single = [table.astype(np.float32) for table in tables]
    with pytest.raises(ValueError, match=r"projections\[0\] must have the dtype of tables\[0\], float32, got float64"):
        adaptive_embedding_forward(ids, single, projections)
    with pytest.raises(ValueError, match=r"tables\[2\] must have the dtype of tables\[0\], float64, got float32"):
        adaptive_embedding_forward(ids, [*tables[:2], single[2]], projections)
    with pytest.raises(ValueError, match=r"tables\[0\] must be float32 or float64 .* got complex128"):
        adaptive_embedding_forward(ids, [table + 0j for table in tables], projections)
    with pytest.raises(ValueError, match="projections must be 2, one for each table but the first, got 1"):
        adaptive_embedding_forward(ids, tables, projections[:1])
    with pytest.raises(ValueError, match=r"projections\[1\] must have shape \(2, 6\), got \(6, 2\)"):
        adaptive_embedding_forward(ids, tables, [projections[0], projections[1].T])
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        adaptive_embedding_forward(ids, tables, projections, dropout=1)
    with pytest.raises(ValueError, match="ids must be integers, got dtype float64"):
        adaptive_embedding_forward(np.zeros(3), tables, projections)
    for bad in (-1, 12):
        with pytest.raises(ValueError, match=r"ids must lie in 0 … 11, got .*" + str(bad)):
            adaptive_embedding_forward(np.array([0, bad]), tables, projections)


@pytest.mark.parametrize("bad", [np.ones((60, 6)), np.ones((3, 20, 6), np.float32)], ids=["shape", "dtype"])
def test_bad_gradients(bad):
    ids, tables, projections, _ = inputs(np.float64)
    _, cache = adaptive_embedding_forward(ids, tables, projections)
    with pytest.raises(ValueError, match=r"dout must be float64 \(3, 20, 6\) like the output"):
        adaptive_embedding_backward(bad, cache)


# The sum of equal ids' rows, which `ops.embedding.sum_rows` is in the textbook.


@each_dtype
@few
@given(R=st.sampled_from([0, 1, 5, 97, 2000]), V=st.sampled_from([1, 7, 131]), D=st.integers(1, 40), seed=seeds)
def test_sum_rows_like_the_textbook(dtype, R, V, D, seed):
    (rows,) = draw(seed, dtype, (R, D))
    ids = np.random.default_rng(seed).integers(0, V, R)
    assert_close(sum_rows(rows, ids, V), ops_sum_rows(in_float64(rows), ids, V), dtype)


def test_sum_rows_refuses_what_does_not_fit():
    rows, ids = np.ones((3, 2)), np.array([0, 4, 0])
    with pytest.raises(ValueError, match="ids must lie in 0 … 3, got 0 … 4"):
        sum_rows(rows, ids, 4)
    with pytest.raises(
        ValueError, match=r"rows must be \(R, D\) and ids \(R,\), one for each row, got \(3, 2\) and \(2"
    ):
        sum_rows(rows, ids[:2], 5)
    with pytest.raises(ValueError, match="rows must be float32 or float64"):
        sum_rows(rows + 0j, ids, 5)
