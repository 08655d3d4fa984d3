"""LayerNorm: what it makes of its input, and its gradient derived a second time."""

import numpy as np
import pytest

from tinyprune.ops import layernorm_backward, layernorm_forward


def test_features_have_mean_0_and_variance_1(rng):
    x = 7 + 3 * rng.standard_normal((2, 3, 50))
    out, _ = layernorm_forward(x, np.ones(50), np.zeros(50), eps=1e-12)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(-1), 1, rtol=1e-10)


def test_shift_and_size_of_the_input_do_not_matter(rng):
    x, scale, bias = rng.standard_normal((4, 9)), rng.standard_normal(9), rng.standard_normal(9)
    out, _ = layernorm_forward(x, scale, bias, eps=0.0)
    np.testing.assert_allclose(layernorm_forward(5 * x - 3, scale, bias, eps=0.0)[0], out, rtol=1e-12, atol=1e-12)


def test_a_constant_vector_stays_finite():
    bias = np.arange(4.0)
    out, cache = layernorm_forward(np.full((1, 4), 3.0), np.ones(4), bias)
    np.testing.assert_array_equal(out[0], bias)
    assert np.isfinite(layernorm_backward(np.ones((1, 4)), cache)[0]).all()


def test_the_closed_form_is_what_the_staged_graph_gives(rng):
    """One elementary step at a time, each reversed by itself: no cleverness to get wrong."""
    D, eps = 6, 1e-5
    x, scale, bias = 2 * rng.standard_normal((2, 4, D)), rng.standard_normal(D), rng.standard_normal(D)
    dout = rng.standard_normal(x.shape)

    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    square = centred**2
    variance = square.mean(-1, keepdims=True)
    std = np.sqrt(variance + eps)
    inverse = 1 / std
    n = centred * inverse
    scaled = n * scale
    out = scaled + bias

    dbias = dout.sum((0, 1))
    dscaled = dout  # out = scaled + bias
    dscale = (dscaled * n).sum((0, 1))  # scaled = n * scale
    dn = dscaled * scale
    dcentred = dn * inverse  # n = centred * inverse
    dinverse = (dn * centred).sum(-1, keepdims=True)
    dstd = -dinverse / std**2  # inverse = 1 / std
    dvariance = dstd / (2 * std)  # std = sqrt(variance + eps)
    dsquare = np.broadcast_to(dvariance / D, x.shape)  # variance = mean(square)
    dcentred = dcentred + dsquare * 2 * centred  # square = centred²; centred is used twice
    dmean = -dcentred.sum(-1, keepdims=True)  # centred = x - mean
    dx = dcentred + dmean / D  # x is used twice: straight, and in the mean

    closed_out, cache = layernorm_forward(x, scale, bias, eps)
    np.testing.assert_allclose(closed_out, out, rtol=1e-13, atol=1e-13)
    for closed, staged in zip(layernorm_backward(dout, cache), (dx, dscale, dbias), strict=True):
        np.testing.assert_allclose(closed, staged, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_shapes_that_do_not_fit(name):
    arguments = {"x": np.ones((2, 4)), "scale": np.ones(4), "bias": np.ones(4)} | {name: np.ones(3)}
    with pytest.raises(ValueError, match=rf"{name} must have shape \(4,\) to match x \(2, 4\), got \(3,\)"):
        layernorm_forward(**arguments)
