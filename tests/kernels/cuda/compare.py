"""What the tests of the CUDA kernels share: inputs, and comparison with the textbook in float64."""

import numpy as np

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import DeviceArray, to_device, to_host

from ..compare import GPU, mapped

TOLERANCE = 1e-5
cuda = get_backend(GPU)


def normal(*shapes, seed=2110):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), np.float32) for shape in shapes]


def on_device(value):
    """Arguments as kernels are given them: floats in the GPU's memory, everything else as it is."""
    return mapped(lambda x: to_device(x) if x.dtype == np.float32 else x, value)


def in_float64(value):
    """The same arguments as the textbook is given them."""
    return mapped(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, value)


def assert_close(got, expected, tolerance=TOLERANCE):
    """`got` (one array or several, None for None) is float32 in the GPU's memory, and as near to `expected` as the
    tolerance times its largest entry, or 0.01 if that is more."""
    if isinstance(expected, tuple | list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, tolerance)
        return
    if expected is None or got is None:
        assert got is expected
        return
    assert isinstance(got, DeviceArray) and got.dtype == np.float32 and got.shape == np.shape(expected)
    finite = np.isfinite(expected)
    size = np.abs(expected[finite]).max() if np.any(finite) else 0.0
    np.testing.assert_allclose(to_host(got), expected, rtol=0, atol=tolerance * max(0.01, size))


def assert_equal_to_textbook(name, arguments, dout, module=cuda):
    """Forward and backward of operation `name` of the module are those of the textbook in float64."""
    results = []
    for each, given in ((module, on_device), (ops, in_float64)):
        out, cache = getattr(each, f"{name}_forward")(*given(arguments))
        results.append((out, getattr(each, f"{name}_backward")(given(dout), cache)))
    assert_close(*results)


def to_tf32(x):
    """An array, or a number, rounded to 10 bits behind the leading one, half away from zero: cvt.rna.tf32.f32."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32) + np.uint32(1 << 12)
    return np.where(np.isfinite(x), (bits >> 13 << 13).view(np.float32), x)
