"""Products in bfloat16 against the textbook's rounding and float64: shapes, strides, epilogues, threads, processors."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyprune import Transformer
from tinyprune.bench.shapes import batch, model_shape, parameters
from tinyprune.cli import options
from tinyprune.config import TrainConfig, tables
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu.bfloat16_product import DEPTH, ROWS
from tinyprune.kernels.cpu.bfloat16_tiles import STEP, UNIT
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.kernels.cpu.product import BLOCK
from tinyprune.kernels.cpu.simd import VECTOR_BYTES
from tinyprune.model.transformer import engine_in
from tinyprune.ops.bfloat16 import bfloat16_forward
from tinyprune.ops.engine import Engine

from ..compare import assert_same_bits
from .test_matmul import check, check_layouts, draw, layouts

WIDTH = 2 * VECTOR_BYTES // 4
product = partial(matmul, precision="bf16")
few = settings(max_examples=25)
sizes = st.sampled_from([0, 1, 2, 3, 7, 16, ROWS - 1, ROWS, ROWS + 1, WIDTH, WIDTH + 3, 2 * ROWS + 5, 3 * WIDTH])
depths = st.one_of(sizes, st.sampled_from([2 * STEP - 1, 2 * STEP, 2 * STEP + 1, DEPTH, DEPTH + 1, 2 * DEPTH + 37]))


def rounded(x):
    return bfloat16_forward(x)[0]


@few
@given(
    shape=st.tuples(sizes, depths, sizes),
    a_layout=layouts,
    b_layout=layouts,
    onto=st.sampled_from(["none", "plain", "transposed", "gaps", "columns"]),
    transpose_a=st.booleans(),
    transpose_b=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_like_the_sum_of_rounded_factors(shape, a_layout, b_layout, onto, transpose_a, transpose_b, bias, seed):
    """The tolerance is that of float32 sums: factors that are cut off, or not rounded, are off by a thousand of it."""
    how = a_layout, b_layout, onto, transpose_a, transpose_b, bias
    check_layouts(product, np.float32, shape, *how, seed, rounded)


@few
@given(B=st.integers(1, 3), T=sizes, K=sizes, N=sizes, skip=st.integers(0, 2), seed=st.integers(0, 2**32 - 1))
def test_the_last_rows_of_each_batch_entry(B, T, K, N, skip, seed):
    S = T + skip
    n, W, dn, g = draw(np.float32, (B, S, K), (K, N), (B, S, N), (B, T, N), seed=seed)
    part = n[:, skip:]
    check(product(part, W), rounded(part), rounded(W), np.float32)
    before, last = dn.copy(), dn[:, skip:]
    product(part, W, onto=last)
    check(last, rounded(part), rounded(W), np.float32, before[:, skip:])
    assert_same_bits(dn[:, :skip], before[:, :skip])
    rows = rounded(part).reshape(B * T, K)
    check(product(part, g, transpose_a=True), rows.T, rounded(g).reshape(B * T, N), np.float32)


def test_wider_than_a_block_in_one_thread_and_in_two():
    a, b, c = draw(np.float32, (5 * ROWS + 1, DEPTH + 9), (DEPTH + 9, BLOCK * WIDTH + 5), (BLOCK * WIDTH + 5,))
    results = []
    for threads in (1, 2):
        with get_backend("numba").threads(threads):
            results.append([product(a, b, bias=c), product(a.T.copy(), b.T.copy().T, transpose_a=True, bias=c)])
    assert_same_bits(*results)
    check(results[0][0], rounded(a), rounded(b), np.float32, c)


def test_ties_go_to_even_and_what_is_no_number_spreads():
    a = np.zeros((ROWS + 1, 2 * STEP), np.float32)
    a[:, 0], a[0, 1], a[ROWS, 3] = [1 + k * 2.0**-8 for k in range(ROWS + 1)], np.nan, np.inf
    b = np.eye(2 * STEP, WIDTH, dtype=np.float32)
    got = product(a, b)
    assert_same_bits(got[1:ROWS, 0], rounded(a[1:ROWS, 0]))
    assert np.isnan(got[0]).all() and np.isnan(np.delete(got[ROWS], 3)).all() and got[ROWS, 3] == np.inf
    assert np.isfinite(got[1:ROWS]).all()


def test_only_float32():
    with pytest.raises(ValueError, match="arrays must be float32 for products in bfloat16, got float64"):
        product(np.ones((2, 3)), np.ones((3, 4)))


class Textbook(Engine):
    """The textbook with rounded factors in the primitives that all other products are made of."""

    def _rounded(primitive):
        def compute(a, b, **options):
            return primitive(rounded(a), rounded(b), **options)

        return staticmethod(compute)

    matmul, weight_gradient = _rounded(Engine.matmul), _rounded(Engine.weight_gradient)
    linear_forward, linear_backward = (
        getattr(type(get_backend("numba")), f"linear_{way}") for way in ("forward", "backward")
    )


def test_a_models_loss_and_gradients_are_those_of_the_textbook_with_rounded_factors():
    """Nearer to it than a quarter of its own distance from float32: sums in another order round some otherwise."""
    shape = model_shape("relative-d128", B=2, T=16, M=16)
    found = []
    for ops in (get_backend("numba").in_precision("bf16"), Textbook(), Engine()):
        model = Transformer(shape.config, parameters(shape), ops=ops)
        loss, _, cache = model.loss(*batch(shape))
        found.append((loss, model.backward(1.0, cache)))
    (got, grads), (expected, rounded_grads), (_, exact) = found
    assert got == pytest.approx(expected, rel=1e-4)
    for key, x in rounded_grads.items():
        own = np.linalg.norm(x - exact[key])
        assert 0 < np.linalg.norm(grads[key] - x) <= 0.25 * own, key


def test_other_engines_refuse():
    for name in ("numpy", "numba"):
        assert get_backend(name).in_precision("float32").precision == "float32"
    with pytest.raises(UsageError, match="precision must be float32 with --backend numpy, for only numba computes in"):
        engine_in(get_backend("numpy"), "bf16")
    assert options.PRECISIONS == tables.PRECISIONS
    with pytest.raises(UsageError, match="precision must be one of float32, bf16; got 'half'"):
        TrainConfig(precision="half")


OTHERS = {"dot": "+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16", "": "+avx2,+fma"}
COMPUTE = """
import sys, numpy as np
from tinyprune.kernels.cpu.bfloat16_tiles import UNIT
from tinyprune.kernels.cpu.matmul import matmul
assert UNIT == sys.argv[1], UNIT
a, b = np.load(sys.argv[2]), np.load(sys.argv[3])
turned = matmul(a.T.copy(), b.T.copy().T, transpose_a=True, precision="bf16")
np.savez(sys.argv[4], plain=matmul(a, b, precision="bf16"), turned=turned)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or UNIT != "amx", reason="the processor has all that is compared")
@pytest.mark.parametrize("unit", OTHERS)
def test_processors_without_the_instruction_compute_the_same_numbers(unit, tmp_path):
    a, b = draw(np.float32, (3 * ROWS + 5, DEPTH + 70), (DEPTH + 70, 2 * WIDTH + 7))
    np.save(tmp_path / "a.npy", a), np.save(tmp_path / "b.npy", b)
    name = "skylake-avx512" if unit else "haswell"
    variables = {
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": OTHERS[unit],
        "NUMBA_CACHE_DIR": str(tmp_path / "kernels"),
    }
    files = [str(tmp_path / file) for file in ("a.npy", "b.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", COMPUTE, unit, *files], env=os.environ | variables, check=True)
    for x in np.load(tmp_path / "out.npz").values():
        check(x, rounded(a), rounded(b), np.float32)
