"""What is timed is the real thing: our side in NumPy, and PyTorch's side against it."""

import math

import numpy as np
import pytest
from toy_works import SIZES, write_model

from tinyprune.bench import ours
from tinyprune.bench.agreement import disagreement
from tinyprune.bench.inputs import matrices
from tinyprune.bench.peers import numpy_blas
from tinyprune.errors import UsageError

PLAIN = {"name": "plain-d128", "T": 8, "B": 2}  # absolute positions and persistent vectors


@pytest.mark.parametrize("layout", ["A·B", "A·Bᵀ", "Aᵀ·B"])
def test_products(layout):
    a, b = matrices(3, 5, 4, layout)
    expected = np.einsum({"A·B": "mk,kn", "A·Bᵀ": "mk,nk", "Aᵀ·B": "km,kn"}[layout] + "->mn", a, b)
    for work in (ours.matmul("numpy", 3, 5, 4, layout), numpy_blas.matmul(3, 5, 4, layout)):
        np.testing.assert_allclose(work.results()["out"], expected, rtol=1e-5)
        np.testing.assert_allclose(work.run(), expected, rtol=1e-5)


def test_half_of_the_heads_closed_and_removed_are_the_same_model(tmp_path):
    """In evaluation; and it is not the model with all heads."""
    name = write_model(tmp_path)
    full, closed, removed = (
        ours.training_step("numpy", half, name=name).results()["losses"][0] for half in (None, "closed", "removed")
    )
    assert closed == pytest.approx(removed, rel=1e-6) and abs(full - closed) > 1e-4


def test_heads_that_are_closed_are_not_computed(tmp_path):
    from tinyprune.bench.shapes import model_shape
    from tinyprune.kernels.backend import get_backend

    model = ours.make_model(model_shape(write_model(tmp_path)), get_backend("numpy"), "closed")
    for gates in model.gates(np.random.default_rng(0)):
        assert gates.active.tolist() == [0, 2]


def test_parameters_and_memory_move_on(tmp_path):
    for kind in SIZES:
        losses = ours.training_step("numpy", name=write_model(tmp_path, kind)).results()["losses"]
        assert len(set(losses)) == 3 and all(1 < loss < 5 for loss in losses), kind


def torch_peer(module: str):
    pytest.importorskip("torch")
    import importlib

    return importlib.import_module(f"tinyprune.bench.peers.{module}")


def assert_same(a, b, tolerance):
    assert disagreement(a.results(), b.results(), tolerance) == ""
    a.run()
    b.run()


@pytest.mark.parametrize("mode", ["plain", "sdpa"])
@pytest.mark.parametrize("kind", [*SIZES, "plain"])
def test_torch_attention_gives_our_output_and_gradients(mode, kind, tmp_path):
    shape = PLAIN if kind == "plain" else {"name": write_model(tmp_path, kind)}
    peer = torch_peer("torch_attention")
    assert_same(ours.attention("numpy", **shape), peer.attention(mode, **shape), 1e-4)


@pytest.mark.parametrize("mode", ["plain", "sdpa"])
@pytest.mark.parametrize("kind", [*SIZES, "plain"])
def test_torch_trains_as_we_do(mode, kind, tmp_path):
    """Losses of three steps: forward, backward, clipping, optimizer, memory. Dropout is off in what is compared."""
    dropout = "\ndropout = 0.3\ndropout_attention = 0.3\ndropout_embedding = 0.3"
    shape = PLAIN if kind == "plain" else {"name": write_model(tmp_path, kind, dropout)}
    peer = torch_peer("torch_model")
    optimizer = {"plain": "foreach", "sdpa": "fused"}[mode]
    assert_same(ours.training_step("numpy", **shape), peer.training_step(mode, optimizer, **shape), 1e-6)


def test_torch_trains_with_fewer_heads(tmp_path):
    shape = {"name": write_model(tmp_path), "heads": 2}
    peer = torch_peer("torch_model")
    assert_same(ours.training_step("numpy", **shape), peer.training_step("sdpa", **shape), 1e-6)


@pytest.mark.parametrize("kind", ["all-attention", "transformer-xl"])
def test_torch_reads_token_by_token_as_we_do(kind, tmp_path):
    """From an empty context on until it has been full for a while."""
    peer, name = torch_peer("torch_decoder"), write_model(tmp_path, kind)
    we, they = ours.decoder("numpy", 9, name=name), peer.decoder(9, 1, name=name)
    a, b = we.results()["log_p"], they.results()["log_p"]
    assert len(a) > 9 + 6 and abs(np.exp(a).sum(1) - 1).max() < 1e-5
    assert abs(a - b).max() < 1e-4 * math.log(17)
    assert we.units == they.units == 9
    they.run()


def test_torch_reads_only_with_relative_positions(tmp_path):
    peer = torch_peer("torch_decoder")
    with pytest.raises(UsageError, match="relative positions, got transformer"):
        peer.decoder(9, 1, name=write_model(tmp_path, "transformer"))
