"""What the tests of attention's kernels share."""

import numpy as np

from tinyprune import ops
from tinyprune.kernels.cuda import attention

from ..compare import attention_arguments, attention_results
from .compare import assert_close, on_device


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


def assert_equal_to_textbook(**sizes):
    """Forward and backward at these sizes, with what else `attention_forward` takes."""
    options = {name: sizes.pop(name) for name in ("span", "dropout", "scale") if name in sizes}
    x, dout = arguments(**sizes)
    got, expected = (run(x, dout, **options, rng=np.random.default_rng(2)) for run in (on_gpu, textbook))
    assert_close(list(got.values()), list(expected.values()))
