"""Soft top-k: k of n gates, chosen by how large their numbers are, with a gradient. (Xie & Ermon 2019, Alg. 1, §4)

    a¹   = log_alpha + noise                      noise ~ Gumbel(0, 1): a random choice, likelier for larger log_alpha
    pʲ   = softmax(aʲ / tau)                      a soft "which is the largest?", for j = 1 … k
    aʲ⁺¹ = aʲ + log(1 − pʲ)                       what was chosen is less likely to be chosen again
    g    = Σ_j pʲ                                 sums to k; the smaller tau, the nearer to k ones and n − k zeros
    hard ("straight-through"): the forward pass uses 1 for the k largest a¹ and 0 for the others, the backward pass the
    gradient of g

In evaluation there is no noise: the k largest log_alpha are open. Li, Cotterell & Sachan 2021 prune attention heads
with it ("differentiable subset pruning"); unlike Hard-Concrete gates it leaves exactly k open in every forward pass.
With tau ≥ 1 a number far above all others is chosen more than once, and its g is above 1.
"""

import numpy as np
from numpy.typing import NDArray


def draw_gumbel(n: int, rng: np.random.Generator, dtype: np.dtype | type) -> NDArray:
    """Draw Gumbel noise −log(−log U), U ~ U(0, 1), (n,)."""
    return rng.gumbel(size=n).astype(dtype)


def largest(a: NDArray, k: int) -> NDArray[np.bool_]:
    """Return which are the k largest of `a` (n,); of equal ones the earlier come first."""
    chosen = np.zeros(a.shape, bool)
    chosen[np.argsort(-a.real, kind="stable")[:k]] = True
    return chosen


def choice(z: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Compute a softmax, and what is left when one of n is taken out.

    Args:
        z: (n,).

    Returns:
        p: softmax(z), (n,).
        of_others: row i is the softmax over all but i, (n, n), its diagonal 0.
        log_rest: log(1 − p), (n,), from the others' numbers and not from p, which may be 1 to the last digit; −inf if
            there are no others.
    """
    others = ~np.eye(z.size, dtype=bool)
    highest = np.where(others, z.real, -np.inf).max(1)  # of the others
    e = np.where(others, np.exp(np.where(others, z - highest[:, None], 0)), 0)
    sums = e.sum(1)
    top = z.real.max()
    total = np.exp(z - top).sum()
    with np.errstate(divide="ignore"):
        log_rest = np.where(sums.real > 0, highest + np.log(sums) - top - np.log(total), -np.inf)
    return np.exp(z - top) / total, e / np.where(sums.real > 0, sums, 1)[:, None], log_rest


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
    gate, rounds = np.zeros_like(a), []
    for _ in range(k):
        p, of_others, log_rest = choice(a / tau)
        rounds.append((p, of_others))
        gate = gate + p
        a = a + log_rest
    if hard or noise is None:
        # `gate - gate.real` is zero in real arithmetic and carries the derivative in complex arithmetic, see
        # `hard_concrete_forward`.
        gate = chosen + (gate - gate.real)
    return gate.astype(log_alpha.dtype), (rounds, tau, log_alpha)


def top_k_backward(dout: NDArray, cache: tuple) -> NDArray:
    """Return the gradient of `top_k_forward` with respect to `log_alpha`, the same for hard and soft gates.

    The k rounds are walked through backwards, like the steps of a recurrent network. With P_im the softmax over all
    numbers but i,

        log(1 − p_i)            = logsumexp over m ≠ i of a_m / tau − logsumexp over all
        ∂ log(1 − p_i) / ∂a_m   = (P_im − p_m) / tau
        daʲ                     = daʲ⁺¹ + (daʲ⁺¹ P + pʲ · (dout − Σ_i dout_i pʲ_i)) / tau

    A number added to all of a changes no gate, so Σ_i da_i = 0: the term with p_m in the second line vanishes.

    Args:
        dout: gradient of the loss with respect to `gate`, (n,). Not modified.

    Returns:
        dlog_alpha: (n,).
    """
    rounds, tau, log_alpha = cache
    da = np.zeros_like(log_alpha)
    for p, of_others in reversed(rounds):
        # aʲ⁺¹ = aʲ + log(1 − p)
        through_rest = da @ of_others
        # g = … + p,  p = softmax(aʲ / tau)
        through_gate = p * (dout - (dout * p).sum())
        da = da + (through_rest + through_gate) / tau
    return da
