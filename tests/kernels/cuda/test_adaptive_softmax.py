"""The adaptive softmax against the textbook."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal
from .test_adaptive_embedding import SIZES, D, clusters

cuda = get_backend("cuda")


TARGETS = {
    "all clusters": np.array([[0, 11, 5, 4], [3, 3, 10, 7]]),
    "no tail": np.array([[0, 3], [2, 1]]),
    "one tail": np.array([4, 6, 5]),
    "a single one": np.array(8),
}


def arguments(targets, move):
    """x, targets, tables, projections, cluster_weight, cluster_bias, biases."""
    x, weight, bias = normal((*targets.shape, D), (2, D), (2,), seed=9)
    tables, projections = clusters()
    biases = normal(*((V,) for V in SIZES), seed=10)
    lists = ([*map(move, arrays)] for arrays in (tables, projections))
    return move(x), targets, *lists, move(weight), move(bias), [*map(move, biases)]


def float64(x):
    return x.astype(float)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_equals_textbook(place, targets):
    results = []
    for module, move in ((ops, float64), (cuda, to_device)):
        loss, cache = module.adaptive_softmax_forward(*arguments(targets, move))
        results.append((loss, *module.adaptive_softmax_backward(0.7, cache)))
    expected, got = results
    assert_close(got, expected)


@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 3, D)])
def test_probabilities(place, shape):
    (x,) = normal(shape)
    results = []
    for module, move in ((ops, float64), (cuda, to_device)):
        _, _, *rest = arguments(TARGETS["no tail"], move)
        results.append(module.adaptive_log_probabilities(move(x), *rest))
    expected, got = results
    assert_close(got, expected)
    assert np.allclose(np.exp(expected).sum(-1), 1)


def test_bad_arguments(place):
    x, targets, tables, projections, weight, bias, biases = arguments(TARGETS["one tail"], to_device)
    with pytest.raises(ValueError, match="targets must lie in 0 … 11, got 4 … 12"):
        cuda.adaptive_softmax_forward(x, np.array([4, 12, 5]), tables, projections, weight, bias, biases)
    with pytest.raises(ValueError, match="biases must have one number for each row of tables"):
        cuda.adaptive_softmax_forward(x, targets, tables, projections, weight, bias, biases[:2])
    with pytest.raises(ValueError, match="cluster_bias must be in the GPU's memory"):
        cuda.adaptive_softmax_forward(x, targets, tables, projections, weight, normal((2,))[0], biases)
