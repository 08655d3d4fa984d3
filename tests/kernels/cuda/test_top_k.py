"""Soft top-k: the textbook's numbers, there and back."""

import pytest

from tinyprune.kernels.cuda.array import to_device
from tinyprune.kernels.cuda.top_k import top_k_forward

from .compare import assert_equal_to_textbook, normal


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_equals_textbook(place, hard, noisy):
    log_alpha, noise, dout = normal((9,), (9,), (9,))
    assert_equal_to_textbook("top_k", (log_alpha, noise if noisy else None), dout, k=4, tau=0.7, hard=hard)


def test_bad_arguments(place):
    (log_alpha,) = normal((9,))
    with pytest.raises(ValueError, match="needed are 0 <= k <= 9 gates"):
        top_k_forward(to_device(log_alpha), None, k=10, tau=1.0, hard=True)
