"""Dropout's mask, worked out entry by entry inside kernels instead of being read. See `tinyprune.ops.dropout`."""

from typing import NamedTuple

import numpy as np
from numba import types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.jit import device, float32, uint32
from tinyprune.kernels.formulas import threshold
from tinyprune.ops.dropout import draw_keys


class Dropout(NamedTuple):
    """These numbers decide in a kernel whether an entry is kept."""

    factor: np.float32  # of entries that are kept, mostly 1 / (1 − rate)
    key0: np.uint32
    key1: np.uint32
    limit: np.uint32  # which an entry's hash has to reach to be kept


DROPOUT = types.NamedTuple((float32, uint32, uint32, uint32), Dropout)

kept = device(formulas.kept)


@device
def keep_factor(i, dropout):
    """Return what entry i is multiplied by: the factor, or 0 if it is dropped."""
    return dropout.factor if kept(i, dropout.key0, dropout.key1, dropout.limit) else float32(0)


def draw_mask(rate: float, rng: np.random.Generator | None, factor: float = 1.0) -> Dropout:
    """Draw the mask of a rate, and of kept entries times `factor`. Without a generator, or at rate 0, all are kept."""
    rate = 0.0 if rng is None else rate
    keys = draw_keys(rng) if rate else (0, 0)
    return Dropout(np.float32(factor / (1 - rate)), *map(np.uint32, (*keys, threshold(rate))))


KEEP_ALL = draw_mask(0.0, None)
