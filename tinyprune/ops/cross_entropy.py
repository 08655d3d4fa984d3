"""Softmax cross-entropy: how many nats a model needs for the tokens that came, on average.

    p_rv = exp(logits_rv) / Σ_v' exp(logits_rv')
    loss = mean_r −log p_r,targets_r                  logits (..., V)   targets (...)

Nats / ln 2 are bits; exp(loss) is the perplexity.
"""

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.rows import check_ids


def log_softmax(logits: NDArray) -> NDArray:
    """Compute log p over the last axis; the largest logit is subtracted first, so that exp cannot overflow."""
    shifted = logits - logits.real.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cross_entropy_forward(logits: NDArray, targets: NDArray, *, overwrite: bool = False) -> tuple[np.inexact, tuple]:
    """Compute the mean negative log-probability of `targets`.

    Args:
        logits: (..., V), any float or complex dtype.
        targets: token numbers, integers in 0 … V−1, shape (...), at least one.
        overwrite: whether `logits` may be overwritten, being of no more use. It is a large array, and a compiled kernel
            then needs no second one; the textbook leaves it as it is.

    Returns:
        loss: scalar in nats a token, dtype of `logits`.
        cache: what `cross_entropy_backward` needs.

    Raises:
        ValueError: if a target is not an integer in 0 … V−1, or the shapes do not fit together.
    """
    check_targets(logits, targets)
    log_p = log_softmax(logits)
    loss = -np.take_along_axis(log_p, targets[..., None], -1).mean()
    return loss, (log_p, targets)


def cross_entropy_backward(dout: float | np.inexact, cache: tuple) -> NDArray:
    """Return the gradient of `cross_entropy_forward` with respect to `logits`.

    log p_r,target depends on every logit of its row, through the logit itself and through the sum, and so

        dlogits_rv = dout · (p_rv − 1[v = targets_r]) / R.

    Args:
        dout: gradient with respect to `loss`, scalar.

    Returns:
        dlogits: (..., V).
    """
    log_p, targets = cache
    # loss = mean_r -log_p[r, targets_r],  log_p = logits - log Σ exp(logits)
    dlogits = np.exp(log_p)
    subtract_at_targets(dlogits, targets, 1)
    dlogits *= dout / targets.size
    return dlogits


def subtract_at_targets(x: NDArray, targets: NDArray, value: float) -> None:
    """Subtract `value` from x[r, targets_r] of each row r, in place; x (..., V) may lie in memory in any order."""
    place = targets[..., None]
    np.put_along_axis(x, place, np.take_along_axis(x, place, -1) - value, -1)


def check_targets(x: NDArray, targets: NDArray, V: int | None = None) -> None:
    """Raise ValueError unless there is one target in 0 … V−1 for each row of x (..., D or V), and at least one row."""
    if targets.shape != x.shape[:-1] or targets.size == 0:
        raise ValueError(f"targets must have shape {x.shape[:-1]}, one or more, got {targets.shape}")
    check_ids(targets, V or x.shape[-1], "targets")
