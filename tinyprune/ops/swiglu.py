"""SwiGLU: one half of a hidden layer, after a smooth ReLU, is the gate of the other. (Shazeer 2020, eq. 5)

    s   = 1 / (1 + exp(−a))                     a, b, out (..., F)
    out = a · s · b

a · s is called SiLU or Swish. The two linear maps before it and the one after it are not part of the operation.
"""

from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape
from tinyprune.ops.hard_concrete import sigmoid


def swiglu_forward(a: NDArray, b: NDArray) -> tuple[NDArray, tuple]:
    """Multiply SiLU of `a` by `b`.

    Args:
        a: what the gate is made of, any shape, usually (..., F); any float or complex dtype.
        b: what it multiplies, shape of `a`.

    Returns:
        out: shape and dtype of `a`, a new array.
        cache: what `swiglu_backward` needs.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(a=a, b=b)
    s = sigmoid(a)
    out = a * s * b
    return out, (a, b, s)


def swiglu_backward(dout: NDArray, cache: tuple) -> tuple[NDArray, NDArray]:
    """Return the gradients of `swiglu_forward` in argument order.

    Args:
        dout: gradient of the loss with respect to `out`, shape of `a`. Not modified.

    Returns:
        da, db: shape of `a`.
    """
    a, b, s = cache
    # out = a * s * b
    da = dout * s * b
    ds = dout * a * b
    db = dout * a * s
    # s = sigmoid(a)
    da = da + ds * s * (1 - s)
    return da, db
