"""Attention against the textbook: ragged and hidden tiles; numbers that are large, NaN; memory."""

import numpy as np
import pytest

from tinyprune.kernels.cuda import attention
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.device.memory import POOL

from ..compare import assert_errors_like, mapped
from .attention_case import arguments, assert_equal_to_textbook, on_gpu, textbook
from .compare import assert_close, on_device

# Beside those of the contract suite: more than one tile of queries, keys, persistent vectors and distances, of most the
# last with a single one; spans that hide whole tiles.
CASES = {
    "width 16": {"B": 1, "H": 1, "T": 129, "M": 32, "Dh": 16, "N": 33, "span": 100, "gate": (0.5,), "scale": 1.5},
    "width 32": {"B": 1, "H": 1, "T": 70, "M": 65, "Dh": 31, "N": 65, "span": 90, "gate": (0.5,)},
    "width 64": {"B": 1, "H": 1, "T": 97, "M": 32, "Dh": 64, "N": 33, "gate": (0.5,)},
    "no positions": {"B": 1, "H": 1, "T": 65, "M": 0, "Dh": 61, "N": 70, "relative": False, "gate": None},
    "persistent": {"B": 1, "T": 70, "M": 30, "N": 33, "relative": False, "span": 3, "scale": 0.5},
    "nothing but itself": {"H": 3, "T": 67, "M": 2, "N": 1, "span": 0, "gate": (0, 1, 0.3)},
    "one token": {"B": 3, "T": 1, "M": 18, "N": 16, "gate": None, "scale": 1.5},
    "no tokens": {"T": 0, "gate": (0.5,)},
    "longer than the span": {"B": 1, "H": 1, "T": 150, "M": 40, "Dh": 3, "N": 0, "span": 1, "gate": None},
}
LARGE = {"B": 3, "H": 2, "T": 530, "N": 300}


@pytest.mark.parametrize("name", CASES)
def test_equals_textbook(place, name):
    assert_equal_to_textbook(
        **CASES[name] | {"dropout": 0.1} | (LARGE if place == "gpu" and name.startswith("width") else {})
    )


def test_groups_of_the_batch(place, monkeypatch):
    for blocks in (1, 4, 1000):
        monkeypatch.setattr(attention, "BLOCKS", blocks)
        assert_equal_to_textbook(B=5, H=1, T=2, M=1, N=3, gate=None)


def test_scores_far_apart(place):
    """Maxima that rise late and steeply: everything is rescaled often, and nothing overflows."""
    x, dout = arguments(B=1, T=33, M=7, N=17, gate=(0.4, 1.0), seed=4)
    x[0] *= 12
    x[1] *= np.linspace(0, 3, 40, dtype=np.float32)[:, None, None]
    got = mapped(to_host, on_gpu(x, dout))
    assert_errors_like(got, textbook(x, dout, dtype=np.float32), textbook(x, dout))


@pytest.mark.parametrize("where", range(9))
def test_nan_is_noticed(place, where):
    """A model that has diverged must not look healthy."""
    x, dout = arguments(B=1, T=20, M=10, N=9, gate=(0.5, 1.0))
    x[where][(-1,) * x[where].ndim] = np.nan
    got = on_gpu(x, dout)
    assert np.isnan(to_host(got["out"])).any() and np.isnan(to_host(got["dq"])).any()


def test_a_closed_head_has_no_backward(place):
    x, dout = arguments(gate=(0.0, 1.0))
    x[2][..., 0, :] = np.nan
    got = mapped(to_host, on_gpu(x, dout))
    assert np.isnan(got["out"][..., 0, :]).all() and np.isnan(got["dgate"][0])
    assert all(np.isfinite(got[name]).all() for name in ("dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv"))


def test_all_scores_far_below_zero(place, both_roundings):
    """What fills up a tile has a score of 0, which would be larger by far; and backward's scores are forward's."""
    x, dout = arguments(B=1, H=1, T=3, M=2, Dh=4, N=5, relative=False, gate=None)
    for n, middle in ((0, 30), (1, -30), (6, -15)):  # q, k, pk
        x[n] = middle + x[n] / np.float32(20)
    assert_close(list(on_gpu(x, dout).values()), list(textbook(x, dout).values()), 1e-3)


def test_no_matrix_of_weights_in_memory(place):
    """Twice the text takes about twice the memory."""

    def peak(T):
        x, _ = arguments(B=1, H=1, T=T, M=0, Dh=4, N=0, relative=False, gate=None)
        x = on_device(x)
        before = POOL.most_used = POOL.bytes_used
        attention.attention_forward(*x)
        return POOL.most_used - before

    assert peak(128) < 3 * peak(64)


def test_heads_that_are_too_wide(place):
    q, said = to_device(np.zeros((1, 1, 1, 65), np.float32)), "heads have at most 64 numbers .* on a GPU, got 65"
    with pytest.raises(ValueError, match=said):
        attention.attention_forward(q, q, q)
