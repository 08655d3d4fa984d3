"""The parts of a model that can be removed: the heads of each layer, and where `U` is set the blocks of units of each.

Both are one kind of thing: a part has an original number, a gate, a score, a price. Whatever there is one of for each
part comes either joined, an array (all parts,), or split, a list with an array for each group of `counts`: L groups of
heads, and L more of blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.model.counting import count_parts, head_part, products_of
from tinyprune.model.parameters import Parameters
from tinyprune.ops.engine import Engine

Scores = list[NDArray]  # split: the larger, the more worth keeping
Mask = list[NDArray[np.bool_]]  # split: which parts stay


@dataclass(frozen=True)
class Parts:
    """All parts of a model of this configuration."""

    config: ModelConfig

    @property
    def counts(self) -> tuple[int, ...]:
        """Return how many heads each layer has, then how many blocks of units each has, where there are any."""
        return self.config.heads + self.config.blocks

    @property
    def ids(self) -> tuple[tuple[int, ...], ...]:
        """Return the original numbers of all parts, split."""
        return self.config.head_ids + self.config.block_ids

    @property
    def total(self) -> int:
        """Return how many parts there are."""
        return sum(self.counts)

    @property
    def gates(self) -> list[str]:
        """Return the names among the parameters of the `log_alpha` of each group."""
        kinds = ("log_alpha", "ffn.log_alpha") if self.config.U else ("log_alpha",)
        return [f"layers.{i}.{kind}" for kind in kinds for i in range(self.config.L)]

    def split(self, joined: NDArray) -> list[NDArray]:
        """Return a view of each group."""
        ends = itertools.accumulate(self.counts)
        return [joined[end - count : end] for count, end in zip(self.counts, ends, strict=True)]

    def log_alpha(self, params: Parameters, ops: Engine) -> NDArray:
        """Return the log_alpha of all gates, joined, in main memory."""
        return np.concatenate([ops.to_host(params[name]) for name in self.gates])

    def named(self, joined: NDArray, ops: Engine) -> Parameters:
        """Return one number for each part as parameters with the names of the gates, in the engine's memory."""
        return {name: ops.to_device(own.copy()) for name, own in zip(self.gates, self.split(joined), strict=True)}

    def full(self, value: bool) -> Mask:
        """Return a mask with this value for all parts."""
        return [np.full(count, value) for count in self.counts]

    def tied(self, groups: bool) -> NDArray[np.intp]:
        """Return for each part the first part that shares its gate: itself, unless heads are tied, joined.

        groups: whether heads that share keys and values have one gate together.
        """
        first: list[int] = []
        for layer, count in enumerate(self.counts):
            start, shared = len(first), None
            if groups and layer < self.config.L:
                shared = self.config.groups(layer)
            if shared is None:
                first.extend(range(start, start + count))
            else:
                first.extend(start + shared.index(own) for own in shared)
        return np.array(first, np.intp)

    def prices(self, price: str) -> tuple[NDArray, float]:
        """Return what the removal of each part saves, joined, and what the whole model has without its embedding.

        Args:
            price: "gates", of which each part has one; "parameters"; "multiply-adds"; "cache", of keys and values, in
                numbers for each position. A head that shares its key-value head has an equal share of it.
        """
        config, head = self.config, head_part(self.config)
        biased = config.biased_outputs * (products_of(config) - 1) * config.U
        block = products_of(config) * config.D * config.U
        cached = np.concatenate([self._cached(ids) for ids in config.head_ids])
        keys = cached if config.kv_heads else np.zeros(sum(config.heads))  # columns of Wk and Wv that a head shares
        heads = {
            "gates": np.ones(sum(config.heads)),
            "parameters": head.parameters + keys * (config.D + config.biased_projections),
            "multiply-adds": head.multiply_adds_per_token + keys * config.D,
            "cache": cached,
        }
        blocks = {"gates": 1, "parameters": block + biased, "multiply-adds": block, "cache": 0}
        prices = np.concatenate([heads[price], np.full(sum(config.blocks), blocks[price], float)])
        if price in ("gates", "cache"):
            return prices, float(prices.sum())
        counted = {"parameters": "parameters", "multiply-adds": "multiply_adds_per_token"}[price]
        return prices, float(sum(getattr(row, counted) for row in count_parts(config)[2:]))

    def _cached(self, ids: tuple[int, ...]) -> NDArray:
        """Return the share of each head of a layer in the keys and values that are kept for a position."""
        config = self.config
        read = np.array(ids, int) * (config.kv_heads or config.H) // config.H
        return 2 * config.Dh * (1 / np.bincount(read)[read])

    def remaining(self, mask: Mask) -> ModelConfig:
        """Return the configuration of the model that has only the parts of a mask."""
        kept = tuple(
            tuple(int(i) for i, stays in zip(ids, own, strict=True) if stays)
            for ids, own in zip(self.ids, mask, strict=True)
        )
        counts, L = tuple(map(len, kept)), self.config.L
        return dataclasses.replace(
            self.config, heads=counts[:L], head_ids=kept[:L], blocks=counts[L:], block_ids=kept[L:]
        )


def summed(values: NDArray, first: NDArray) -> NDArray:
    """Return for each part the sum over all parts that share its gate, see `Parts.tied`."""
    return np.bincount(first, values).astype(values.dtype)[first]


def within(order: NDArray, prices: NDArray, budget: float) -> NDArray[np.bool_]:
    """Return which parts fit into a budget when they are taken in this order, leaving out what is too dear, joined."""
    stay, spent = np.zeros(len(order), bool), 0.0
    for part in order:
        if spent + prices[part] <= budget + 1e-9 * len(order):
            stay[part], spent = True, spent + prices[part]
    return stay
