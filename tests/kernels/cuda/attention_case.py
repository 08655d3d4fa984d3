"""What the tests of attention's kernels share: arguments, and tiles so small that the simulator gets through them."""

from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import numpy as np

from tinyprune import ops
from tinyprune.kernels.cuda import (
    attention,
    attention_distances,
    attention_keys,
    attention_outputs,
    attention_queries,
)
from tinyprune.kernels.cuda.attention_tiles import Tiles
from tinyprune.kernels.cuda.jit import KERNELS
from tinyprune.kernels.cuda.row_dots import row_dots
from tinyprune.kernels.cuda.widths import wide

from .compare import in_float64, on_device

NAMES = ("out", "dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv", "dgate")
VARIANTS = {
    "forward": attention_outputs.FORWARD,
    "queries_backward": attention_queries.QUERIES_BACKWARD,
    "keys_backward": attention_keys.KEYS_BACKWARD,
    "distances_backward": attention_distances.DISTANCES_BACKWARD,
}
# But for their size the narrow ones are like the kernels for Dh up to 32, and the wide ones like those for 64: position
# keys come in two parts, and it is not the same tiles that are long.
SMALL = {
    "narrow": {
        "forward": Tiles(8, queries=32, keys=16, side=4),
        "queries_backward": Tiles(8, queries=32, keys=16, side=4),
        "keys_backward": Tiles(8, queries=16, keys=32, side=4),
        "distances_backward": Tiles(8, queries=16, keys=32, side=4),
    },
    "wide": {
        "forward": Tiles(16, queries=32, keys=16, columns=8, side=4),
        "queries_backward": Tiles(16, queries=16, keys=16, side=4),
        "keys_backward": Tiles(16, queries=32, keys=16, columns=8, side=4),
        "distances_backward": Tiles(16, queries=32, keys=16, columns=8, side=4),
    },
}


def made(module, name, tiles):
    """The kernel of this name and size as `module` makes it; it is none of the package's."""
    known = len(KERNELS)
    kernel = getattr(module, f"make_{name}")(tiles)
    del KERNELS[known:]
    return kernel


@cache
def small(sizes):
    """All four kernels, by name."""
    modules = (attention_outputs, attention_queries, attention_keys, attention_distances)
    return {name: made(module, name, SMALL[sizes][name]) for module, name in zip(modules, VARIANTS, strict=True)}


@contextmanager
def installed(kernels):
    """Meanwhile attention uses these, by name, and no other variants of them."""
    before = {name: VARIANTS[name].copy() for name in kernels}
    try:
        for name, kernel in kernels.items():
            VARIANTS[name].clear()
            VARIANTS[name][kernel.tiles.width] = kernel
        yield
    finally:
        for name, variants in before.items():
            VARIANTS[name].clear()
            VARIANTS[name].update(variants)


def arguments(B=2, H=2, T=5, M=3, Dh=8, N=6, relative=True, gate=(0.7, 0.0), seed=1):
    """q, k, v, r, u, w, pk, pv (None where there are none), the gates and dout, all but the gates standard normal."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    S = M + T
    x = [normal(B, T, H, Dh), normal(B, S, H, Dh), normal(B, S, H, Dh)]
    x += [normal(S, H, Dh), normal(H, Dh), normal(H, Dh)] if relative else [None] * 3
    x += [normal(H, N, Dh), normal(H, N, Dh)] if N else [None] * 2
    x.append(None if gate is None else np.resize(np.array(gate, np.float32), H))
    return x, normal(B, T, H, Dh)


def textbook(x, dout, **options):
    """What `tinyprune.ops` finds in float64, by name: output, gradients, and the head outputs `o` of the cache."""
    out, cache = ops.attention_forward(*map(in_float64, x), **options)
    gradients = ops.attention_backward(in_float64(dout), cache)
    return dict(zip(NAMES, (out, *gradients), strict=True)) | {"o": cache.o}


def on_gpu(x, dout, **options):
    """The same of the kernels, in the GPU's memory."""
    out, cache = attention.attention_forward(*map(on_device, x), **options)
    gradients = attention.attention_backward(on_device(dout), cache)
    return dict(zip(NAMES, (out, *gradients), strict=True)) | {"o": cache.o}


@cache
def case(sizes):
    """For a test of one kernel of these sizes, which is to notice a missing barrier: more than one round of every loop.

    Returns:
        x: arguments.   options, rng: of forward.   expected: by name, of the textbook.
        gradients: what each of backward's functions takes.
    """
    x, dout = arguments(B=2, H=1, T=18, M=15, Dh=SMALL[sizes]["forward"].width - 1, N=17, gate=(0.7,))
    options = {"span": 30, "dropout": 0.2, "scale": 1.5}

    def rng():
        return np.random.default_rng(2)

    with installed(small(sizes)):
        _, c = attention.attention_forward(*map(on_device, x), **options, rng=rng())
    dout_there = wide(on_device(dout))
    delta = row_dots(dout_there, wide(c.o), options["scale"])
    return SimpleNamespace(
        x=x,
        options=options,
        rng=rng,
        expected=textbook(x, dout, **options, rng=rng()),
        gradients=(dout_there, delta, c),
    )
