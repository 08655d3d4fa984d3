"""Layer-wise error: the closed form against the two norms that define it."""

import numpy as np
import pytest

from tinyprune.ops import layerwise_error_forward

B, T, H, Dh, D = 2, 4, 3, 5, 7


@pytest.fixture
def constants(rng):
    return rng.standard_normal((B, T, H, Dh)), rng.standard_normal((H * Dh, D)), rng.standard_normal(D)


def by_norms(gate, o, Wo, bo, scale):
    """‖y_gated − y_full‖² / ‖y_full − x‖² with both outputs written out, on some x."""
    x = np.random.default_rng(9).standard_normal((B, T, D))
    y_full = x + o.reshape(B, T, H * Dh) @ Wo + bo
    y_gated = x + (scale * gate[:, None] * o).reshape(B, T, H * Dh) @ Wo + bo
    return ((y_gated - y_full) ** 2).sum() / ((y_full - x) ** 2).sum()


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_it_is_the_ratio_of_the_norms(scale, constants):
    for gate in np.array([[0.3, 1.0, 0.0], [1, 1, 0], [0, 0, 0], [1, 1, 1]]):
        error, _ = layerwise_error_forward(gate, *constants, scale)
        assert error == pytest.approx(by_norms(gate, *constants, scale), rel=1e-12, abs=1e-15)


def test_all_open_is_no_error_and_all_closed_is_all_of_it(constants):
    o, Wo, bo = constants
    assert layerwise_error_forward(np.ones(H), o, Wo, bo)[0] == 0
    assert layerwise_error_forward(np.zeros(H), o, Wo, 0 * bo)[0] == pytest.approx(1, rel=1e-12)


def test_one_head_alone():
    error, _ = layerwise_error_forward(np.array([0.25]), np.ones((B, T, 1, Dh)), np.ones((Dh, D)), np.zeros(D))
    assert error == pytest.approx(0.75**2)
