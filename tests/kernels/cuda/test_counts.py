"""What kernels ask of memory: counted by hand for small ones, and near the fewest for all of the package's."""

from contextlib import suppress

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.bench.backend_workloads import training_step
from tinyprune.bench.benchmarks.roofline import totals
from tinyprune.errors import NotFiniteError
from tinyprune.kernels.cuda.device.array import empty, to_device
from tinyprune.kernels.cuda.device.jit import KERNELS, cuda, float32, floats, int32
from tinyprune.kernels.cuda.engine import Cuda
from tinyprune.kernels.cuda.products import primitives

from .checks import launched
from .compare import normal
from .test_device import made

pytestmark = pytest.mark.slow


@pytest.fixture
def counts(emulated, monkeypatch):
    """A function that returns sectors, the fewest, waves and the fewest of each kernel that another one launches; or
    other totals."""

    def counted(run, what=slice(2, 6)):
        with monkeypatch.context() as changed:
            changed.setattr(emulated, "counted", True)
            kernels = launched(run, emulated)
        return {k.name: totals(k, 1, 1.0, 1.0)[what].tolist() for k in kernels}

    return counted


@made(floats, int32, int32, floats, threads=32)
def strided(x, step, row, out):
    """Read every `step`-th number; write and read a column of a table of 32 rows in shared memory."""
    shared = cuda.shared.array(32 * 33, float32)
    i = cuda.threadIdx.x
    shared[i * row] = x[i * step]
    cuda.syncthreads()
    out[i] = shared[i * row] + shared[0]


@pytest.mark.parametrize(("step", "sectors"), [(0, 1), (1, 4), (2, 8), (3, 12), (8, 32), (20, 32)])
@pytest.mark.parametrize(("row", "waves"), [(32, 32), (33, 1), (16, 16), (2, 2)])
def test_requests_by_hand(counts, step, sectors, row, waves):
    """Reads of `sectors` sectors and one store of four; a store and a load of `waves` waves, and one number for all."""
    x, out = to_device(np.zeros(640, np.float32)), empty(32)
    fewest = 4 if step else 1
    assert counts(lambda: strided(1, x, step, row, out)) == {"strided": [sectors + 4, fewest + 4, 2 * waves + 1, 3]}


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_multiply_adds_by_hand(counts, precision):
    a, b = map(to_device, normal((128, 32), (32, 64)))
    found = counts(lambda: primitives.matmul(a, b, precision=precision), 1)
    assert found == {f"product_{precision}_64_ab": 128 * 32 * 64}


def attention(Dh, B=1, H=2, T=64, M=64, N=64):
    """All four kernels, with every argument."""
    shapes = [(B, T, H, Dh), *2 * [(B, T + M, H, Dh)], (T + M, H, Dh), *2 * [(H, Dh)], *2 * [(H, N, Dh)]]
    *arrays, dout = map(to_device, normal(*shapes, (B, T, H, Dh)))
    _, cache = Cuda().attention_forward(*arrays, np.ones(H, np.float32), span=M)
    Cuda().attention_backward(dout, cache)


def products(precision):
    """All three layouts."""
    for size in (128, 256):
        a, b, bt = map(to_device, normal((size, 128), (128, size), (size, 128)))
        primitives.matmul(a, b, precision=precision)
        primitives.matmul(a, bt.T, precision=precision)
        primitives.weight_gradient(b, b, precision=precision)


def others(rows=64, D=256):
    """Norms, maps, the loss, clipping and an update."""
    x, dout, scale = map(to_device, normal((rows, D), (rows, D), (D,)))
    for name, more in {"layernorm": (scale, scale), "rmsnorm": (scale,), "gelu": (), "swiglu": (dout,)}.items():
        _, cache = getattr(Cuda(), f"{name}_forward")(x, *more)
        getattr(Cuda(), f"{name}_backward")(dout, cache)
    _, cache = Cuda().residual_forward(x, dout, 0.1, np.random.default_rng(0))
    Cuda().residual_backward(dout, cache)
    Cuda().cross_entropy_forward(x, np.arange(rows))
    Cuda().clipping([x, dout], [], max_norm=1.0)
    constants = ops.adamw.AdamConstants(0.9, 0.99, eps=1e-8, step=1)
    Cuda().lamb_update(
        x, dout, *map(to_device, np.ones((2, rows, D), np.float32)), lr=0.1, decay=0.1, constants=constants
    )


@pytest.mark.parametrize(("name", "most"), [("tiny", 160), ("small", 240)])
def test_launches_of_a_training_step(emulated, monkeypatch, name, most):
    """Counted without executing them, so that the loss is whatever its memory held."""
    launched = []
    monkeypatch.setattr(type(emulated), "load", lambda self, compiled: None)
    monkeypatch.setattr(type(emulated), "launch", lambda self, *given: launched.append(given[-1]))
    monkeypatch.setattr(type(emulated), "check", lambda self, *given: None)
    step = training_step("cuda-emulated", name=name)
    with suppress(NotFiniteError):
        step.run()
    monkeypatch.undo()
    for kernel in KERNELS:
        vars(kernel).pop("compiled", None)
    assert launched.count("adamw_all") == 1 and len(launched) <= most


WHOLE = {f"attention of width {Dh}": lambda Dh=Dh: attention(Dh) for Dh in (16, 32, 64)}
WHOLE |= {f"products in {each}": lambda each=each: products(each) for each in ("float32", "tf32")} | {"others": others}


@pytest.mark.parametrize("name", WHOLE)
def test_kernels_ask_for_little_more_than_the_fewest(counts, name):
    """On shapes that are multiples of a tile: at most 1.2 times the sectors, and 1.1 times the waves."""
    found = counts(WHOLE[name])
    assert len(found) > 2
    for kernel, (sectors, fewest, waves, fewest_waves) in found.items():
        assert sectors <= 1.2 * fewest and waves <= 1.1 * fewest_waves, (kernel, sectors / fewest, waves / fewest_waves)
