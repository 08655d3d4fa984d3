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


def mask_of(rate: float, keys: tuple[int, int], factor: float = 1.0) -> Dropout:
    """Return the mask of a rate and two keys, and of kept entries times `factor`. At rate 0 all are kept."""
    return Dropout(np.float32(factor / (1 - rate)), *map(np.uint32, (*keys, threshold(rate))))


def draw_mask(rate: float, rng: np.random.Generator | None, factor: float = 1.0) -> Dropout:
    """Draw a mask; one that keeps all, without drawing, for rate 0 or no generator."""
    return mask_of(0, (0, 0), factor) if rng is None or rate == 0 else mask_of(rate, draw_keys(rng), factor)


KEEP_ALL = mask_of(0, (0, 0))
