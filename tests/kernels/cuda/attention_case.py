"""What the tests of attention's kernels share: arguments, and tiles so small that the simulator gets through them."""

from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np

from tinyprune import ops
from tinyprune.kernels.cuda.attend import distances, forward, keys, queries
from tinyprune.kernels.cuda.attend.arguments import Saved
from tinyprune.kernels.cuda.attend.tiles import Tiles
from tinyprune.kernels.cuda.device.jit import KERNELS
from tinyprune.kernels.cuda.operations import attention
from tinyprune.kernels.cuda.parts.arguments import wide
from tinyprune.kernels.cuda.parts.sums import row_dots

from ..compare import attention_arguments, attention_results
from .compare import on_device

MAKERS = {"forward": forward, "queries_backward": queries, "keys_backward": keys, "distances_backward": distances}
VARIANTS = {name: getattr(module, name.upper()) for name, module in MAKERS.items()}
IN_USE = {name: variants.copy() for name, variants in VARIANTS.items()}
WIDTHS = (4, 8, 16)  # of the small tiles


def quarters(name, module):
    """Kernels as `module` makes them, by width, with tiles of a quarter of every size: a sixty-fourth of the work."""
    known = len(KERNELS)
    tiles = [Tiles(*(size // 4 for size in kernel.tiles)) for kernel in IN_USE[name].values()]
    kernels = {small.width: getattr(module, f"make_{name}")(small) for small in tiles}
    del KERNELS[known:]  # they are not kernels of the package
    return kernels


SMALL = {name: quarters(name, module) for name, module in MAKERS.items()}


@contextmanager
def installed(kernels):
    """Meanwhile attention uses these, {name: {width: kernel}}, in place of others of the names."""
    with ExitStack() as stack:
        for name, variants in kernels.items():
            stack.enter_context(mock.patch.dict(VARIANTS[name], variants, clear=True))
        yield


def arguments(B=2, H=2, T=5, M=3, Dh=8, N=6, relative=True, gate=(0.7, 0.0), seed=1):
    """`attention_arguments` in float32, with persistent keys whose scores are like others."""
    x, dout = attention_arguments(seed, B, H, T, M, Dh, N, relative, gate, np.float32)
    if N:
        x[6] /= np.float32(Dh**0.5)
    return x, dout


def textbook(x, dout, dtype=np.float64, **options):
    """What `tinyprune.ops` finds in this dtype, by name."""
    return attention_results(ops, [a if a is None else a.astype(dtype) for a in x], dout.astype(dtype), **options)


def on_gpu(x, dout, **options):
    """The same of the kernels, in the GPU's memory."""
    return attention_results(attention, on_device(x), on_device(dout), **options)


@cache
def case(width):
    """For a test of one kernel of this width, which is to notice a missing barrier: more than one round of every loop.

    Arguments x, options and rng of forward; what the textbook expects; what each of backward's functions takes.
    """
    x, dout = arguments(B=2, H=1, T=18, M=15, Dh=width - 1, N=17, gate=(0.7,))
    options = {"span": 30, "dropout": 0.2, "scale": 1.5}

    def rng():
        return np.random.default_rng(2)

    with installed(SMALL):
        _, c = attention.attention_forward(*map(on_device, x), **options, rng=rng())
    dout_there, expected = wide(on_device(dout)), textbook(x, dout, **options, rng=rng())
    return SimpleNamespace(
        x=x,
        options=options,
        rng=rng,
        expected=expected | {"delta": (dout * expected["o"]).sum(-1) * options["scale"]},
        gradients=(Saved(dout_there, wide(c.o), c.lse, row_dots(dout_there, wide(c.o), options["scale"])), c),
    )
