"""Distillation: cross-entropy with the next token, mixed with the distance from what a teacher predicts.

    p_rv = softmax(logits_r)_v               t_rv = the teacher's probabilities
    loss = mean_r [ −(1 − share) · log p_r,targets_r + share · Σ_v t_rv (log t_rv − log p_rv) ]

The second term is the Kullback–Leibler divergence KL(t ‖ p) (Hinton, Vinyals & Dean 2015, at temperature 1). Its
gradient is the cross-entropy's with t in place of the one-hot vector of the target, so that both are one subtraction.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.add import check_same_shape
from tinyprune.ops.cross_entropy import check_targets, log_softmax, subtract_at_targets


def distillation_forward(
    logits: NDArray, targets: NDArray, teacher: NDArray, *, share: float
) -> tuple[np.inexact, tuple]:
    """Compute the loss of a student, in nats a token.

    Args:
        logits: the student's, (..., V), any float or complex dtype.
        targets: token numbers, integers in 0 … V−1, shape (...), at least one.
        teacher: log-probabilities of the teacher, (..., V). They are constants: they have no gradient.
        share: weight of the divergence, 0 … 1.

    Returns:
        loss: scalar, dtype of `logits`.
        cache: what `distillation_backward` needs.

    Raises:
        ValueError: if a target is not an integer in 0 … V−1, or the shapes do not fit together.
    """
    check_targets(logits, targets)
    check_same_shape(logits=logits, teacher=teacher)
    log_p = log_softmax(logits)
    t = np.exp(teacher)
    surprise = -np.take_along_axis(log_p, targets[..., None], -1).mean()
    divergence = (t * (teacher - log_p)).sum(-1).mean()
    return (1 - share) * surprise + share * divergence, (log_p, targets, t, share)


def distillation_backward(dout: float | np.inexact, cache: tuple) -> NDArray:
    """Return the gradient of `distillation_forward` with respect to `logits`.

        dlogits_rv = dout · (p_rv − (1 − share) · 1[v = targets_r] − share · t_rv) / R

    Args:
        dout: gradient with respect to `loss`, scalar.

    Returns:
        dlogits: (..., V).
    """
    log_p, targets, t, share = cache
    # loss = (1 - share) · surprise + share · divergence;  Σ_v t_rv = 1
    dlogits = np.exp(log_p) - share * t
    subtract_at_targets(dlogits, targets, 1 - share)
    return dlogits * log_p.dtype.type(dout / targets.size)
