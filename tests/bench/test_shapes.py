"""Which models are measured, and what they nominally compute."""

import math

import pytest
from toy_workloads import write_model

from tinyprune.bench.shapes import attention_gflop, model_shape, step_gflop
from tinyprune.errors import UsageError


def test_gflop_counted_by_hand():
    shape = model_shape("tiny", B=1, heads=3)
    D, W, T, S, N = 128, 48, 64, 128, 32
    # multiply-adds of a layer, whose three heads have N units of a feed-forward block each
    products = T * D * W * 2 + S * D * W * 2 + S * D * W + T * W * (2 * S + S) + 2 * T * D * 3 * N
    assert step_gflop(shape.config, 1) * 1e9 == 4 * 3 * 2 * products
    assert attention_gflop(model_shape("tiny").config, 1) * 1e9 == 3 * 2 * T * 128 * (2 * S + S)
    assert math.isclose(step_gflop(model_shape("plain-d256").config, 16), 62.8, rel_tol=2e-3)  # as PyTorch counts it
    # a feed-forward block counts as much as persistent vectors of its width
    plain, transformer = model_shape("plain-d128"), model_shape("plain-d128", kind="transformer", N=0, F=256)
    assert step_gflop(plain.config, 16) == step_gflop(transformer.config, 16)


def test_what_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cutoffs"):
        model_shape(write_model(tmp_path, cutoffs=[5, 9]))
