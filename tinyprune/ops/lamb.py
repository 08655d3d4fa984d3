"""One update of LAMB: AdamW's direction, at a length that fits the tensor. (You et al. 2020, Alg. 2, with φ(z) = z)

    r  = AdamW's m̂ / (√v̂ + eps)
    d  = r + decay · θ
    θ ← θ − lr · ‖θ‖ / ‖d‖ · d                   norms over the whole tensor

So a step changes every tensor by the same fraction lr of its length. The ratio ‖θ‖ / ‖d‖ is taken as 1 where either
norm is 0: a tensor of zeros, such as a fresh bias, could not leave zero otherwise.
"""

import math

from numpy.typing import NDArray

from tinyprune.ops.adamw import AdamConstants, adam_direction
from tinyprune.ops.add import check_same_shape
from tinyprune.ops.norm import squared_norm


def lamb_update(
    param: NDArray, grad: NDArray, m: NDArray, v: NDArray, *, lr: float, decay: float, constants: AdamConstants
) -> None:
    """Update `param` and its moments `m` and `v`, in place, by one step.

    Arguments and errors as those of one parameter in `adamw_updates`.
    """
    check_same_shape(param=param, grad=grad, m=m, v=v)
    if math.isnan(constants.grad_scale):
        return
    d = adam_direction(grad, m, v, constants)
    d += decay * param
    param_norm, d_norm = math.sqrt(squared_norm(param)), math.sqrt(squared_norm(d))
    ratio = param_norm / d_norm if param_norm and d_norm else 1.0
    param -= lr * ratio * d
