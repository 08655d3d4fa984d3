"""Least-squares search: the heads that the others can make up for best. (OSSCAR, Meng et al. 2024)

    cost(S) = Σ over layers of the mean squared error in what the layer adds when the heads S go and the others are
              fitted anew, see `fits`

Two heads that can stand in for each other are both cheap to lose, and yet one of them must stay: no score of single
heads says that. `search` takes away the head that costs least, again and again, and then exchanges a head that stays
for one that has gone as long as that lowers the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from tinyprune.errors import UsageError
from tinyprune.pruning.importance.fits import BlockFit
from tinyprune.pruning.importance.masks import Mask

Stay = list[frozenset[int]]  # the heads that stay in each layer


def search(layers: Sequence[Sequence[BlockFit]], heads: int, relative: bool = False) -> Mask:
    """Return which heads stay so that no removal in the order of costs and no exchange of two heads is better.

    Args:
        layers: the fits of each layer, see `read_fits`.
        heads: how many stay in all layers together.
        relative: divide each layer's cost by that without any head, which is what its heads add. In a pretrained model
            layers differ a thousandfold in this, and the first one, on which all others build, adds least.

    Raises:
        UsageError: if there are fewer heads.
    """
    sizes = [fits[0].heads for fits in layers]
    if not 0 <= heads <= sum(sizes):
        raise UsageError(f"heads must be between 0 and the {sum(sizes)} there are, got {heads}")

    def error(i: int, own: frozenset[int]) -> float:
        stay = np.isin(np.arange(sizes[i]), list(own))
        return sum(fit.cost(stay) / fit.positions for fit in layers[i])

    none = frozenset[int]()
    scales = [error(i, none) or 1.0 if relative else 1.0 for i in range(len(sizes))]

    @cache
    def cost(i: int, own: frozenset[int]) -> float:
        return error(i, own) / scales[i]

    kept = [frozenset(range(H)) for H in sizes]
    while sum(map(len, kept)) > heads:
        _, i, h = min((cost(i, own - {h}) - cost(i, own), i, h) for i, own in enumerate(kept) for h in own)
        kept[i] -= {h}
    better: Stay | None = kept
    while better is not None:
        kept, better = better, best_exchange(better, sizes, cost)
    return [np.isin(np.arange(H), list(own)) for H, own in zip(sizes, kept, strict=True)]


def best_exchange(kept: Stay, sizes: Sequence[int], cost: Callable[[int, frozenset[int]], float]) -> Stay | None:
    """Return the heads that stay after the exchange of two that lowers the cost most; None if none lowers it."""
    found, least = None, -1e-9 * sum(cost(i, own) for i, own in enumerate(kept))
    pairs = ((i, h, j, g) for i, own in enumerate(kept) for h in own for j, H in enumerate(sizes) for g in range(H))
    for i, h, j, g in pairs:
        if g in kept[j]:
            continue
        after = list(kept)
        after[i] -= {h}
        after[j] |= {g}
        change = sum(cost(a, after[a]) - cost(a, kept[a]) for a in {i, j})
        if change < least:
            found, least = after, change
    return found
