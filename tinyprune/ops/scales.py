"""One update of AdamW on what a quantised file stores of 32 weights together: their scale, and their offset.

    W_g = s_g · n_g + o_g      for each block g of 32 weights of a column; n_g has mean 0 and mean square 1, and stays
    ds_g = Σ n_g · dW_g        do_g = Σ dW_g
    s_g ← s_g − lr · r         o_g ← o_g − lr · r'           r, r': AdamW's directions of these gradients, see `adamw`

Without offsets o_g is 0 and n_g has only the mean square. In the file n_g are small whole numbers: they stay, so that
it keeps its size, and rounding takes nothing of what was learned. (Of scales alone: PEQA, Kim et al. 2023, 2305.14152)
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.adamw import AdamConstants, adam_direction
from tinyprune.ops.add import check_same_shape

BLOCK = 32  # weights
TINIEST = 1e-18  # the least scale: squares of smaller numbers are 0 in float32


def scales_shape(shape: tuple[int, ...], numbers: int) -> tuple[int, ...]:
    """Return the shape of a parameter's moments: (numbers, in / 32, out) for a matrix (in, out) of whole blocks.

    numbers: of each block: 1 is its scale, 2 are scale and offset.
    """
    return (numbers, shape[0] // BLOCK, shape[1]) if len(shape) == 2 and shape[0] % BLOCK == 0 else shape


def check_moments(param: NDArray, grad: NDArray, m: NDArray, v: NDArray) -> None:
    """Raise ValueError unless they have the shapes that `scales_update` expects."""
    check_same_shape(param=param, grad=grad)
    check_same_shape(m=m, v=v)
    if m.shape not in [scales_shape(param.shape, n) for n in (1, 2)]:
        raise ValueError(f"m must have shape {scales_shape(param.shape, 1)}, or 2 in front, got {m.shape}")


def scales_update(
    param: NDArray, grad: NDArray, m: NDArray, v: NDArray, *, lr: float, decay: float, constants: AdamConstants
) -> None:
    """Update `param` and its moments `m` and `v`, in place, by one step.

    Args:
        param: θ, float32 or float64. What is no matrix of whole blocks is updated as by `adamw_updates`.
        grad: the gradient, of the shape of `param`. Not modified.
        m, v: running averages of the gradients of scales, or of scales and offsets, and of their squares; see
            `scales_shape`.
        lr, decay, constants: as for `adamw_updates`.

    Raises:
        ValueError: if shapes are others.
    """
    check_moments(param, grad, m, v)
    if math.isnan(constants.grad_scale):
        return
    if m.shape == param.shape:
        r = adam_direction(grad, m, v, constants)
    else:
        W, dW = (x.reshape(len(x) // BLOCK, BLOCK, x.shape[1]) for x in (param, grad))
        n = W - W.mean(1, keepdims=True) if len(m) == 2 else W
        s = np.maximum(np.sqrt(np.einsum("gio,gio->go", n, n) / BLOCK), TINIEST)
        gradients = [np.einsum("gio,gio->go", n, dW) / s, dW.sum(1)]
        r = adam_direction(np.stack(gradients[: len(m)]), m, v, constants)
        r = (n * (r[0] / s)[:, None] + r[1:].sum(0)[:, None]).reshape(param.shape)
    param *= 1 - lr * decay
    param -= lr * r
