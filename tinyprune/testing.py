"""The one-line gradient test, for any layer written with NumPy.

A layer is a pair of functions of this form, and needs nothing else of this package:

    out, cache = my_forward(x, W)
    dx, dW     = my_backward(dout, cache)       one gradient for each input that is an array of floats, in their order

A small convolution, for example, over time, of C channels with kernels of width K:

    out_bto = Σ_k Σ_c x_b,t+k,c W_kco           x (B, T, C)   W (K, C, O)   out (B, T − K + 1, O)

>>> import numpy as np
>>> from tinyprune.testing import assert_gradients
>>> def convolution_forward(x, W):
...     K, T = len(W), x.shape[1]
...     out = sum(x[:, k : T - K + 1 + k] @ W[k] for k in range(K))
...     return out, (x, W)
>>> def convolution_backward(dout, cache):
...     x, W = cache
...     K, T = len(W), x.shape[1]
...     dx, dW = np.zeros_like(x), np.zeros_like(W)
...     for k in range(K):
...         dx[:, k : T - K + 1 + k] += dout @ W[k].T
...         dW[k] = np.einsum("btc,bto->co", x[:, k : T - K + 1 + k], dout)
...     return dx, dW
>>> rng = np.random.default_rng(0)
>>> x, W = rng.standard_normal((2, 7, 3)), rng.standard_normal((4, 3, 5))
>>> assert_gradients(convolution_forward, convolution_backward, x, W)

It passes. With a mistake, here the taps of the kernel in the wrong order, the test says what is wrong, and where:

>>> def wrong_backward(dout, cache):
...     dx, dW = convolution_backward(dout, cache)
...     return dx, dW[::-1]
>>> assert_gradients(convolution_forward, wrong_backward, x, W, argument_names=["x", "W"])  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
AssertionError: convolution_forward: wrong gradient with respect to W
    relative error ... (allowed 1e-12, complex mode)
    worst at W[...]: expected ..., got ...

The derivative is measured with a complex step, which is exact to about 1e-15 and asks that the forward pass complex
numbers through. One that cannot (np.abs, float(), a cast to float32) is measured with differences instead:
`mode="central"`, good to 1e-7. Integers, None and other arguments are passed on as they are and have no gradient. The
test also fails if `backward` modifies `dout` or its cache, or if `forward` modifies its inputs.

`check_gradients` returns the same comparison as records, one for each gradient, instead of raising an error.
"""

from tinyprune.gradcheck.checker import GradientRecord, assert_gradients, check_gradients

__all__ = ["GradientRecord", "assert_gradients", "check_gradients"]
