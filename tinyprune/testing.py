"""The one-line gradient test, for any layer written with NumPy.

    from tinyprune.testing import assert_gradients

    def test_gradients_of_my_layer():
        rng = np.random.default_rng(0)
        assert_gradients(my_forward, my_backward, rng.standard_normal((3, 5)), rng.standard_normal((5, 2)))

It asks for the form `out, cache = my_forward(x, W)` and `dx, dW = my_backward(dout, cache)`, and for nothing else of
this package.
"""

from tinyprune.gradcheck.checker import GradientRecord, assert_gradients, check_gradients

__all__ = ["GradientRecord", "assert_gradients", "check_gradients"]
