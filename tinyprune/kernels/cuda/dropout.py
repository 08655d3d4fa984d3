"""Dropout's mask, worked out entry by entry inside kernels instead of being read. See `tinyprune.ops.dropout`."""

from numba import types

from tinyprune.kernels import formulas
from tinyprune.kernels.cuda.device.jit import device, float32, uint32

DROPOUT = types.NamedTuple((float32, uint32, uint32, uint32), formulas.Dropout)
KEEP_ALL = formulas.draw_mask(0.0, None)

kept = device(formulas.kept)


@device
def keep_factor(i, dropout):
    """Return what entry i is multiplied by: the factor, or 0 if it is dropped."""
    return dropout.factor if kept(i, dropout.key0, dropout.key1, dropout.limit) else float32(0)
