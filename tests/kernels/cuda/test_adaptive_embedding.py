"""The adaptive embedding against the textbook."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal

cuda = get_backend("cuda")


SIZES, D, DIV = (4, 3, 5), 12, 2


def clusters(sizes=SIZES):
    """Tables and projections of 12, 6 and 3 numbers a word."""
    widths = [D // DIV**c for c in range(len(sizes))]
    tables = normal(*zip(sizes, widths, strict=True))
    return tables, normal(*((width, D) for width in widths[1:]), seed=7)


@pytest.mark.parametrize("sizes", [SIZES, (12,)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (0, 2)])
def test_equals_textbook(place, sizes, dropout, shape):
    tables, projections = clusters(sizes)
    ids = np.random.default_rng(3).integers(0, 12, shape)
    (dout,) = normal((*shape, D), seed=8)
    results = []
    for module, move in ((ops, lambda x: x.astype(float)), (cuda, to_device)):
        arguments = [*map(move, tables)], [*map(move, projections)]
        rng = np.random.default_rng(1)
        out, cache = module.adaptive_embedding_forward(ids, *arguments, dropout=dropout, rng=rng)
        results.append((out, *module.adaptive_embedding_backward(move(dout), cache)))
    expected, got = results
    assert_close(got, expected)


def test_words_of_one_cluster_only(place):
    tables, projections = clusters()
    out, cache = cuda.adaptive_embedding_forward(
        np.array([1, 2]), [*map(to_device, tables)], [*map(to_device, projections)]
    )
    (dout,) = normal((2, D))
    dtables, dprojections = cuda.adaptive_embedding_backward(to_device(dout), cache)
    assert_close(dtables[1:], [np.zeros((3, 6)), np.zeros((5, 3))])
    assert_close(dprojections, [np.zeros((6, D)), np.zeros((3, D))])


def test_bad_arguments(place):
    tables, projections = ([*map(to_device, arrays)] for arrays in clusters())
    with pytest.raises(ValueError, match="ids must lie in 0 … 11, got 3 … 12"):
        cuda.adaptive_embedding_forward(np.array([3, 12]), tables, projections)
    with pytest.raises(ValueError, match="projections must be 2, one for each table but the first, got 1"):
        cuda.adaptive_embedding_forward(np.array([3]), tables, projections[:1])
    with pytest.raises(ValueError, match=r"tables\[0\] must be in the GPU's memory"):
        cuda.adaptive_embedding_forward(np.array([3]), clusters()[0], projections)
