"""What is timed is the real thing: our side in NumPy, and PyTorch's side against it."""

import numpy as np
import pytest
from toy_workloads import SIZES, write_model

from tinyprune.bench import backend_workloads as ours
from tinyprune.bench.benchmarks.speed import BF16_TOLERANCE
from tinyprune.bench.race import disagreement
from tinyprune.bench.shapes import model_shape
from tinyprune.kernels.backend import get_backend

PLAIN = {"name": "plain-d128", "T": 8, "B": 2}  # absolute positions and persistent vectors


def torch_module(name: str):
    """`tinyprune.bench.torch_NAME`; the test is skipped without PyTorch."""
    pytest.importorskip("torch")
    return getattr(__import__("tinyprune.bench", fromlist=[f"torch_{name}"]), f"torch_{name}")


def assert_same(a, b, tolerance):
    assert disagreement(a.results(), b.results(), tolerance) == ""
    a.run()
    b.run()


def test_the_yardstick():
    a, b = np.random.default_rng(0).standard_normal((2, 5, 5), np.float32)
    np.testing.assert_allclose(ours.blas(5).run(), np.einsum("mk,kn->mn", a, b), rtol=1e-5)


def test_half_of_the_heads_closed_and_removed_are_the_same_model(tmp_path):
    """In evaluation; and it is not the model with all heads."""
    name = write_model(tmp_path)
    full, closed, removed = (
        ours.training_step("numpy", half, name=name).results()["losses"][0] for half in (None, "closed", "removed")
    )
    assert closed == pytest.approx(removed, rel=1e-6) and abs(full - closed) > 1e-4
    gated, smaller = (ours.make_model(model_shape(name), get_backend("numpy"), half) for half in ("closed", "removed"))
    for gates in gated.gates(np.random.default_rng(0)):
        assert gates.active.tolist() == [0, 2]  # the closed head is not computed
    assert smaller.config.heads == (2, 2)


@pytest.mark.parametrize("mode", ["plain", "sdpa"])
@pytest.mark.parametrize("kind", [*SIZES, "plain"])
def test_torch_computes_what_we_do(mode, kind, tmp_path):
    """Attention and its gradients; losses of three steps: forward, backward, clipping, optimizer, memory.

    Under bf16 autocast, emulated where the processor has no such instructions, the losses are others, but not far off.
    """
    dropout = dict.fromkeys(("dropout", "dropout_attention", "dropout_embedding"), 0.3)  # off in what is compared
    shape = PLAIN if kind == "plain" else {"name": write_model(tmp_path, kind, **dropout)}
    peer = torch_module("operations").attention(mode, **shape)
    assert_same(ours.attention("numpy", **shape), peer, 1e-4)
    step, torch_step = ours.training_step("numpy", **shape), torch_module("model").training_step
    expected, in_bf16 = step.results(), torch_step(mode, bf16=True, **shape).results()
    assert disagreement(expected, in_bf16, 1e-6) and not disagreement(expected, in_bf16, BF16_TOLERANCE)
    assert_same(ours.training_step("numpy", **shape), torch_step(mode, **shape), 1e-6)
