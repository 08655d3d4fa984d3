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
from numpy.typing import NDArray

from tinyprune.errors import UsageError
from tinyprune.method.fits import BlockFit
from tinyprune.model.parts import Mask

Stay = list[frozenset[int]]  # the heads that stay in each layer


def search(layers: Sequence[Sequence[BlockFit]], heads: float, prices: NDArray | None = None) -> Mask:
    """Return which heads stay so that no removal in the order of costs and no exchange of two heads is better.

    Args:
        layers: the fits of each part, see `read_fits`.
        heads: how many stay in all layers together; with `prices`, what those may cost that stay.
        prices: what each part costs, (all parts,); None for 1.

    Raises:
        UsageError: if there are fewer heads.
    """
    sizes = [fits[0].heads for fits in layers]
    prices = np.ones(sum(sizes)) if prices is None else prices
    if not 0 <= heads <= prices.sum():
        raise UsageError(f"heads must be between 0 and the {prices.sum():g} there are, got {heads}")

    @cache
    def cost(i: int, own: frozenset[int]) -> float:
        stay = np.isin(np.arange(sizes[i]), list(own))
        return sum(fit.cost(stay) / fit.positions for fit in layers[i])

    kept = [frozenset(range(H)) for H in sizes]
    price, room = np.split(prices, np.cumsum(sizes)[:-1]), heads - prices.sum()
    while room < -1e-9:
        options = []
        for i, own in enumerate(kept):
            for h in own:
                if price[i][h]:
                    options.append(((cost(i, own - {h}) - cost(i, own)) / price[i][h], i, h))
        _, i, h = min(options)
        kept[i] -= {h}
        room += price[i][h]
    better: Stay | None = kept
    while better is not None:
        kept, better = better, best_exchange(better, sizes, cost, price, room)
    return [np.isin(np.arange(H), list(own)) for H, own in zip(sizes, kept, strict=True)]


def best_exchange(
    kept: Stay, sizes: Sequence[int], cost: Callable[[int, frozenset[int]], float], price: list[NDArray], room: float
) -> Stay | None:
    """Return the heads that stay after the exchange of two that lowers the cost most; None if none lowers it.

    `price` (H,) of each layer: the one that comes back may cost as much more as there is `room`.
    """
    found, least = None, -1e-9 * sum(cost(i, own) for i, own in enumerate(kept))
    pairs = ((i, h, j, g) for i, own in enumerate(kept) for h in own for j, H in enumerate(sizes) for g in range(H))
    for i, h, j, g in pairs:
        if g in kept[j] or price[j][g] - price[i][h] > room + 1e-9:
            continue
        after = list(kept)
        after[i] -= {h}
        after[j] |= {g}
        change = sum(cost(a, after[a]) - cost(a, kept[a]) for a in {i, j})
        if change < least:
            found, least = after, change
    return found
