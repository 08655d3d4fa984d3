"""One update of stochastic gradient descent with momentum (Polyak 1964) and decoupled weight decay.

g  = grad_scale · grad
b ← beta1 · b + g
θ ← θ − lr · (b + decay · θ)
"""

import math

from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape


def sgd_update(
    param: NDArray, grad: NDArray, momentum: NDArray, *, lr: float, decay: float, beta1: float, grad_scale: float = 1.0
) -> None:
    """Update `param` and `momentum`, in place, by one step.

    Args:
        param: θ, any shape, float32 or float64.
        grad: gradient, shape of `param`. Not modified.
        momentum: b, shape of `param`.
        lr: learning rate.
        decay: weight decay, in units of `lr`.
        beta1: share of the momentum that stays, 0 ≤ beta1 < 1.
        grad_scale: factor applied to the gradient as it is read: the clipping factor. NaN: nothing is changed.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(param=param, grad=grad, momentum=momentum)
    if math.isnan(grad_scale):
        return
    momentum *= beta1
    momentum += grad_scale * grad
    param *= 1 - lr * decay
    param -= lr * momentum
