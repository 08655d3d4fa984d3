"""What a block adds to the stream as a least-squares problem, for criteria and repairs that need no gradient.

A block adds X W + b; X holds the outputs of its heads at all positions, (n, H·width). X̃ is X with a column of ones,
W̃ is W with the row b below it, and all that is needed from the text is G = X̃ᵀX̃.

If the heads S go and the others, K, and b are fitted anew, W̃' minimises

    ‖X̃ (W̃ − W̃')‖² + λ ‖W − W'‖² = tr (W̃ − W̃')ᵀ G_λ (W̃ − W̃')     with W̃'_S = 0,  G_λ = G + λI (λ not for b)

The gradient with respect to the rows K is zero where G_KK (W̃_K − W̃'_K) + G_KS W̃_S = 0, so that

    W̃'_K    = W̃_K + G_KK⁻¹ G_KS W̃_S
    cost(S) = tr W̃_Sᵀ (G_SS − G_SK G_KK⁻¹ G_KS) W̃_S

The Schur complement in brackets is the inverse of (G⁻¹)_SS: these are OSSCAR's W ← W − G⁻¹_{:,S} [(G⁻¹)_SS]⁻¹ W_S and
tr W_Sᵀ [(G⁻¹)_SS]⁻¹ W_S (Meng et al. 2024, arXiv 2403.12983; also SlimGPT, Ling et al. 2024, arXiv 2412.18110).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import UsageError
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer, gated_outputs
from tinyprune.training.evaluation import read_segments

RIDGE = 1e-4  # λ as a share of the mean of XᵀX's diagonal


@dataclass(frozen=True)
class BlockFit:
    """The least-squares problem of a block with H heads, or a feed-forward block with H blocks of units.

    Heads with networks have two in each layer.
    """

    G: NDArray  # X̃ᵀX̃, (H·width + 1, H·width + 1) float64
    W: NDArray  # W̃, (H·width + 1, D) float64
    heads: int  # H
    biased: bool = True  # whether there is a b to fit; otherwise it is a row of zeros and stays one

    @property
    def positions(self) -> float:
        """Return n, how many positions were read."""
        return float(self.G[-1, -1])

    @property
    def width(self) -> int:
        """Return how many columns of X each head has."""
        return (len(self.W) - 1) // max(self.heads, 1)

    def rows(self, stay: NDArray[np.bool_]) -> tuple[NDArray, NDArray, NDArray]:
        """Return the rows of S and of K, as booleans, and G_KK⁻¹ G_KS. `stay` (H,): which heads stay."""
        own = np.repeat(stay, self.width)
        S, K, G = np.append(~own, False), np.append(own, self.biased), self.ridged
        return S, K, np.linalg.solve(G[np.ix_(K, K)], G[np.ix_(K, S)])

    @cached_property
    def ridged(self) -> NDArray:
        """Return G_λ, computed once for all sets of heads that a search tries."""
        diagonal = np.zeros(len(self.G))
        if self.heads:
            diagonal[:] = RIDGE * self.G.diagonal()[:-1].mean()
        diagonal[-1] = 0.0  # b has no penalty
        return self.G + np.diag(diagonal)

    def cost(self, stay: NDArray[np.bool_]) -> float:
        """Return the squared error that is left after the fit, summed over positions and features."""
        S, K, fit = self.rows(stay)
        schur = self.ridged[np.ix_(S, S)] - self.ridged[np.ix_(S, K)] @ fit
        return float(((schur @ self.W[S]) * self.W[S]).sum())

    def fitted(self, stay: NDArray[np.bool_]) -> NDArray:
        """Return W̃', (H·width + 1, D), with rows of zeros for the heads that go."""
        S, K, fit = self.rows(stay)
        W = self.W.copy()
        W[K] += fit @ W[S]
        W[S] = 0.0
        return W

    def fluctuation(self) -> NDArray:
        """Return Σ_j var(X_j) ‖W_j‖² over the columns of each head, (H,)."""
        means = self.G[-1, :-1] / self.positions
        variance = self.G.diagonal()[:-1] / self.positions - means**2
        return (variance * (self.W[:-1] ** 2).sum(1)).reshape(self.heads, self.width).sum(1)


def read_fits(model: Transformer, tokens: NDArray) -> list[list[BlockFit]]:
    """Read a text once with all heads; return the fits of each entry of `Parts.counts`.

    The heads of a layer have that of its attention, and of their networks if any; its blocks of units have one.

    Args:
        model: without gates, or with gates that are all open.
        tokens: the text, (n,).

    Raises:
        UsageError: if the text is shorter than one segment, or a gate is closed.
    """
    if not all(gates is None or (gates.values == 1).all() for gates in model.gates()):
        raise UsageError("the model must have all its heads open to fit others in place of some, got closed gates")
    host = model.ops.to_host
    sums: dict[tuple[int, int], NDArray] = {}
    layers: list[list[BlockFit]] = []
    for _, cache in read_segments(model, tokens):
        layers = []
        for i, heads in enumerate(Parts(model.config).counts):
            layers.append([])
            for j, (outputs, W, b) in enumerate(gated_outputs(model, cache, i)):
                x = host(outputs).astype(float)
                X = np.ones((x.shape[0] * x.shape[1], x.shape[2] * x.shape[3] + 1))
                X[:, :-1] = x.reshape(len(X), -1)
                sums[i, j] = sums.get((i, j), 0.0) + X.T @ X
                biased = j > 0 or model.config.biased_outputs  # a network's values always are
                with_bias = np.vstack([host(W), host(b)]).astype(float)
                layers[i].append(BlockFit(sums[i, j], with_bias, heads, biased))
    return layers
