"""What a head does to its layer's output is what its gate's gradient says, exactly."""

import numpy as np
import pytest

from tinyprune.ops import (
    attention_backward,
    attention_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    head_difference,
    linear_backward,
    linear_forward,
)

B, T, M, H, Dh, N, D = 2, 4, 3, 3, 5, 6, 11


@pytest.fixture
def layer(rng):
    """y(gate) of an All-attention layer, with dropout on its weights fixed, and its backward to the gate."""
    S = M + T
    shapes = [(B, T, H, Dh), (B, S, H, Dh), (B, S, H, Dh), (S, H, Dh), (H, Dh), (H, Dh), (H, N, Dh), (H, N, Dh)]
    arguments = [rng.standard_normal(shape) for shape in shapes]
    x, Wo, bo = rng.standard_normal((B, T, D)), rng.standard_normal((H * Dh, D)), rng.standard_normal(D)

    def forward(gate):
        options = {"span": M, "scale": 1.5, "dropout": 0.2, "rng": np.random.default_rng(1)}
        out, attention = attention_forward(*arguments, gate, **options)
        y, linear = linear_forward(out.reshape(B, T, H * Dh), Wo, bo)
        return x + y, (attention, linear)

    def backward(dy, cache):
        attention, linear = cache
        return attention_backward(linear_backward(dy, linear)[0].reshape(B, T, H, Dh), attention)[-1]

    return forward, backward, Wo


def test_it_is_the_output_with_the_head_minus_the_output_without(layer):
    forward, _, Wo = layer
    gate = np.array([0.3, 0.8, 1.0])
    delta = head_difference(forward(gate)[1][0].o, Wo, scale=1.5)
    assert delta.shape == (H, B, T, D)
    for h in range(H):
        opened, closed = gate.copy(), gate.copy()
        opened[h], closed[h] = 1, 0
        np.testing.assert_allclose(forward(opened)[0] - forward(closed)[0], delta[h], rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_gate_is_exactly_the_loss_per_output_times_the_difference(layer, rng):
    forward, backward, Wo = layer
    y, cache = forward(np.array([0.3, 0.0, 1.0]))
    _, loss_cache = cross_entropy_forward(y, rng.integers(0, D, (B, T)))
    dy = cross_entropy_backward(1.0, loss_cache)
    expected = (dy * head_difference(cache[0].o, Wo, scale=1.5)).sum((1, 2, 3))
    np.testing.assert_allclose(backward(dy, cache), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_it_keeps_the_type(dtype):
    delta = head_difference(np.ones((B, T, H, Dh), dtype), np.ones((H * Dh, D), dtype), 1.5)
    assert delta.dtype == dtype
    np.testing.assert_array_equal(delta, Dh * 1.5)


def test_no_heads():
    assert head_difference(np.ones((B, T, 0, Dh)), np.ones((0, D))).shape == (0, B, T, D)
