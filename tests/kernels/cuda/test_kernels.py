"""The emulator executes every kernel of the package, and each result is compared with the textbook's."""

from itertools import product

import numpy as np
import pytest

from tinyprune.kernels.cuda.device.array import to_device
from tinyprune.kernels.cuda.products import primitives
from tinyprune.kernels.cuda.products.primitives import matmul, weight_gradient
from tinyprune.kernels.cuda.products.product import ARITHMETICS

from .. import test_contract as contract
from ..compare import GPU
from .checks import CHECKS, launched
from .compare import assert_close, normal, to_tf32
from .modules import all_modules, kernels_of


def products(monkeypatch):
    """Those by tiles: both precisions, sizes of tiles, layouts, in one slot and in several."""
    a, b, bias = map(to_tf32, normal((9, 70), (70, 6), (6,)))
    x, y, y_transposed, x_transposed, there = map(to_device, (a, b, b.T.copy(), a.T.copy(), bias))
    for precision, tile, shortest in product(ARITHMETICS, primitives.TILES, (16, primitives.SHORTEST)):
        primitives.plan.cache_clear()
        with monkeypatch.context() as changed:
            changed.setattr(primitives, "TILES", (tile,))
            changed.setattr(primitives, "SHORTEST", shortest)
            got = [matmul(x, each, bias=there, precision=precision) for each in (y, y_transposed.T)]
            gradient = weight_gradient(x_transposed, y, precision=precision)
        expected = a.astype(float) @ b
        assert_close([*got, gradient], [expected + bias, expected + bias, expected])
    primitives.plan.cache_clear()


@pytest.mark.slow
def test_every_kernel_is_executed(emulated, monkeypatch):
    def everything():
        for check in CHECKS.values():
            check()
        for name in contract.NAMES:
            if name not in contract.HOST:
                contract.assert_like_the_textbook(GPU, name, contract.SIZES, np.float32)
        products(monkeypatch)

    executed = {kernel.name for kernel in launched(everything, emulated)}
    assert {kernel.__name__ for kernel in kernels_of(all_modules())} - executed == set()
