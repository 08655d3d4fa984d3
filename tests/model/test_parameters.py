"""Parameters: their shapes and initial values."""

import math

import numpy as np
import pytest
from small import ADAPTIVE, small_config

from tinyprune.model.parameters import init_parameters, is_bias, layer_parameters, parameter_shapes
from tinyprune.model.vocabulary import cluster_ranges


def test_adaptive_shapes():
    adaptive = small_config(cutoffs=(4, 7), div_value=2)
    assert cluster_ranges(adaptive) == [(0, 4), (4, 7), (7, 11)]
    shapes = parameter_shapes(adaptive)
    assert [shapes[f"embedding.{c}"] for c in range(3)] == [(4, 12), (3, 6), (4, 3)]
    assert "projection.0" not in shapes
    assert [shapes[f"projection.{c}"] for c in (1, 2)] == [(6, 12), (3, 12)]
    assert [shapes[f"out_bias.{c}"] for c in range(3)] == [(4,), (3,), (4,)]
    assert shapes["cluster.weight"] == (2, 12) and shapes["cluster.bias"] == (2,)
    assert "embedding" not in shapes and "out_bias" not in shapes and shapes["R"] == (5 + 4, 12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ADAPTIVE)
def test_initial_values(kind, dtype):
    """Uniform within ±√(1/D), in the layers ±√(1/(D·L)); no norm, no bias."""
    D, L = 32, 3
    config = small_config(kind, V=300, D=D, H=4, L=L, cutoffs=(100,), div_value=2)
    for name, x in init_parameters(config, np.random.default_rng(0), dtype).items():
        assert x.dtype == dtype
        if name.endswith("scale"):
            assert (x == 1).all()
        elif is_bias(name):
            assert not x.any()
        else:
            bound = math.sqrt(1 / (D * L)) if name.startswith("layers.") else math.sqrt(1 / D)
            assert 0.9 * bound < np.abs(x).max() <= bound * (1 + 1e-6), name
            # Five standard deviations of what a uniform sample of this size shows.
            assert x.std() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(x.size)), name
            assert abs(x.mean()) < 5 * bound / math.sqrt(3 * x.size), name


def test_the_same_seed_gives_the_same_model():
    one, two, other = (init_parameters(small_config(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["embedding"], other["embedding"])
    assert not np.array_equal(one["layers.0.Wq"], one["layers.1.Wq"])


def test_which_parameters_are_biases():
    shapes = parameter_shapes(small_config(), gated=True) | parameter_shapes(
        small_config("transformer-xl", cutoffs=(4,))
    )
    shapes |= parameter_shapes(small_config("transformer"))
    biases = {name.removeprefix("layers.0.") for name in shapes if is_bias(name) and "layers.1." not in name}
    outer = {"ln.bias", "out_bias", "out_bias.0", "out_bias.1", "cluster.bias"}
    assert biases == outer | {"bo", "u", "w", "ffn.ln.bias", "ffn.b1", "ffn.b2"}


def test_layer_parameters_share_their_arrays():
    params = init_parameters(small_config(L=11), np.random.default_rng(0))
    layer = layer_parameters(params, 1)
    assert set(layer) == {name.removeprefix("layers.1.") for name in params if name.startswith("layers.1.")}
    assert all(layer[name] is params[f"layers.1.{name}"] for name in layer)
