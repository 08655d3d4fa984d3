"""Soft top-k: k of n gates, chosen by how large their numbers are, with a gradient. (Xie & Ermon 2019, Alg. 1, §4)

    a¹   = log_alpha + noise                      noise ~ Gumbel(0, 1): a random choice, likelier for larger log_alpha
    pʲ   = softmax(aʲ / tau)                      a soft "which is the largest?", for j = 1 … k
    aʲ⁺¹ = aʲ + log(1 − pʲ)                       what was chosen is not chosen again
    g    = Σ_j pʲ                                 sums to k; for small tau k of the g are 1 and the others 0
    hard ("straight-through"): the forward pass uses 1 for the k largest a¹ and 0 for the others, the backward pass the
    gradient of g

In evaluation there is no noise: the k largest log_alpha are open. Li, Cotterell & Sachan 2021 prune attention heads
with it ("differentiable subset pruning"); unlike Hard-Concrete gates it leaves exactly k open in every forward pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST_P = 1 - 1e-6  # beyond it log(1 − p) has no digits left in float32


def draw_gumbel(n: int, rng: np.random.Generator, dtype: np.dtype | type) -> NDArray:
    """Noise −log(−log U) with U ~ U(0, 1), (n,)."""
    return rng.gumbel(size=n).astype(dtype)


def largest(a: NDArray, k: int) -> NDArray[np.bool_]:
    """Which are the k largest of `a` (n,); among equal ones the earlier come first."""
    chosen = np.zeros(a.shape, bool)
    chosen[np.argsort(-a.real, kind="stable")[:k]] = True
    return chosen


def top_k_forward(
    log_alpha: NDArray, noise: NDArray | None, *, k: int, tau: float, hard: bool
) -> tuple[NDArray, tuple]:
    """Choose k of n gates, or in evaluation (without noise) open the k largest.

    Args:
        log_alpha: one number per gate, (n,), any float or complex dtype.
        noise: (n,), real, see `draw_gumbel`; None for evaluation, in which gates are 0 or 1.
        k: how many, 0 ≤ k ≤ n.
        tau: temperature, > 0.
        hard: use 0 or 1 in the forward pass and the gradient of g in the backward pass (straight-through).

    Returns:
        gate: (n,), dtype of `log_alpha`.
        cache: what `top_k_backward` needs.

    Raises:
        ValueError: if `log_alpha` or `noise` is not (n,), k not in 0 … n, or tau not positive.
    """
    if log_alpha.ndim != 1 or (noise is not None and noise.shape != log_alpha.shape):
        raise ValueError(
            f"log_alpha must be (n,), and noise the same or None, got {log_alpha.shape} and "
            f"{None if noise is None else noise.shape}"
        )
    if not 0 <= k <= log_alpha.size or not tau > 0:
        raise ValueError(f"needed are 0 <= k <= {log_alpha.size} gates and tau > 0; got k {k}, tau {tau}")
    a = log_alpha if noise is None else log_alpha + noise
    chosen = largest(a, k)
    gate, ps = np.zeros_like(a), []
    for _ in range(k):
        p = np.exp((a - a.real.max()) / tau)
        p /= p.sum()
        ps.append(p)
        gate = gate + p
        a = a + np.log(1 - np.where(p.real < LARGEST_P, p, LARGEST_P))
    if hard or noise is None:
        # `gate - gate.real` is zero in real arithmetic and carries the derivative in complex arithmetic, see
        # `hard_concrete_forward`.
        gate = chosen + (gate - gate.real)
    return gate.astype(log_alpha.dtype), (ps, tau, log_alpha)


def top_k_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Gradient of `top_k_forward` with respect to `log_alpha`, the same for hard and soft gates.

    The k rounds are walked through backwards, like the steps of a recurrent network:

        dpʲ = dout − daʲ⁺¹ / (1 − pʲ)                   pʲ is in g and in the next round's a; (0 where pʲ was capped)
        daʲ = daʲ⁺¹ + pʲ · (dpʲ − Σ_i dpʲ_i pʲ_i) / tau

    Args:
        dout: gradient of the loss with respect to `gate`, (n,). Not modified.

    Returns:
        dlog_alpha: (n,).
    """
    ps, tau, log_alpha = cache
    da = np.zeros_like(log_alpha)
    for p in reversed(ps):
        # g = … + p,  aʲ⁺¹ = aʲ + log(1 − p)
        below = p.real < LARGEST_P
        dp = dout - np.where(below, da / (1 - np.where(below, p, 0)), 0)
        # p = softmax(aʲ / tau)
        da = da + p * (dp - (dp * p).sum()) / tau
    return da
