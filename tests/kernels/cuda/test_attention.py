"""Attention against the textbook: every option, each with others; ragged shapes; all tiles."""

import numpy as np
import pytest

from tinyprune.kernels.cuda import attention
from tinyprune.kernels.cuda.array import to_device, to_host

from .attention_case import NAMES, arguments, installed, on_gpu, small, textbook
from .compare import TOLERANCE, on_device

# T and M are such that some tiles are full, ragged, seen in part or not at all; N is less or more than a tile.
CASES = {
    "all": {"T": 33, "M": 3, "Dh": 7, "N": 17, "span": 20, "dropout": 0.3, "scale": 2.5},
    "plain": {"B": 1, "H": 1, "T": 35, "M": 0, "N": 0, "relative": False, "gate": None},
    "relative": {"T": 17, "M": 21, "Dh": 5, "N": 0, "gate": (1, 0.5), "span": 21},
    "relative with dropout": {"B": 1, "T": 5, "M": 41, "N": 0, "gate": None, "dropout": 0.5},
    "persistent": {"B": 1, "T": 20, "M": 30, "N": 33, "relative": False, "span": 3, "scale": 0.5},
    "persistent with dropout": {"B": 1, "T": 34, "M": 0, "Dh": 4, "N": 5, "relative": False, "dropout": 0.1},
    "nothing but itself": {"H": 3, "T": 34, "M": 2, "N": 1, "span": 0, "gate": (0, 1, 0.3)},
    "one token": {"B": 3, "T": 1, "M": 18, "N": 16, "gate": None, "scale": 1.5},
    "the least": {"B": 1, "H": 1, "T": 1, "M": 0, "Dh": 1, "N": 0, "relative": False, "gate": None},
    "the least of all parts": {"B": 1, "H": 1, "T": 1, "M": 0, "Dh": 1, "N": 1, "gate": (0.5,)},
    "longer than the span": {"B": 1, "H": 1, "T": 50, "M": 40, "Dh": 3, "N": 0, "span": 1, "gate": None},
}
OPTIONS = ("span", "dropout", "scale")


def assert_equal_to_textbook(**sizes):
    """Every entry is within the tolerance, times the largest of its array, of what the textbook finds in float64."""
    options = {name: sizes.pop(name) for name in OPTIONS if name in sizes}
    x, dout = arguments(**sizes)
    given, dout_given = [on_device(a) for a in x], on_device(dout)
    got = on_gpu(given, dout_given, **options, rng=np.random.default_rng(2))
    for name, expected in textbook(x, dout, **options, rng=np.random.default_rng(2)).items():
        if expected is None:
            assert got[name] is None, name
            continue
        assert got[name].shape == expected.shape and got[name].dtype == np.float32, name
        error, largest = np.abs(to_host(got[name]) - expected), np.abs(expected).max(initial=0)
        assert error.max(initial=0) <= TOLERANCE * max(largest, 1e-2), name
    for before, after in zip((*x, dout), (*given, dout_given), strict=True):
        assert after is before is None or np.array_equal(to_host(after), before)


@pytest.mark.parametrize("name", CASES)
def test_equals_textbook(place, name):
    with installed(small("narrow")):
        assert_equal_to_textbook(**CASES[name])


@pytest.mark.parametrize("name", ["all", "plain", "relative", "persistent", "longer than the span"])
def test_with_position_keys_in_parts_and_other_tiles(place, name):
    with installed(small("wide")):
        assert_equal_to_textbook(**CASES[name] | {"Dh": 13})


@pytest.mark.parametrize("Dh", [16, 31, 64])
def test_with_the_tiles_that_are_in_use(place, Dh):
    assert_equal_to_textbook(B=1, H=1, T=34, M=1, Dh=Dh, N=33, gate=(0.5,), span=30, dropout=0.1)


def test_groups_of_the_batch(place, monkeypatch):
    with installed(small("narrow")):
        for blocks in (1, 4, 1000):
            monkeypatch.setattr(attention, "BLOCKS", blocks)
            assert_equal_to_textbook(B=5, H=1, T=2, M=1, N=3, gate=None)


@pytest.mark.parametrize("empty", [{"H": 0}, {"B": 0}, {"T": 0}])
@pytest.mark.parametrize("part", [{}, {"N": 0}, {"relative": False}])
def test_empty(place, empty, part):
    sizes = {"gate": (0.5,)} | empty | part
    if "T" in empty and "N" in part:
        pytest.skip("the textbook has no maximum of no scores")
    assert_equal_to_textbook(**sizes)


def test_scores_far_apart(place):
    """Maxima that rise late and steeply: everything is rescaled often, and nothing overflows.

    Rounding the scores themselves costs digits, here as in the textbook; so its own errors are the measure.
    """
    x, dout = arguments(B=1, T=33, M=7, N=17, gate=(0.4, 1.0), seed=4)
    x[0] *= 12
    x[1] *= np.linspace(0, 3, 40, dtype=np.float32)[:, None, None]
    with installed(small("narrow")):
        got = on_gpu(x, dout)
    rounded = textbook_in_float32(x, dout)
    for name, exact in textbook(x, dout).items():
        errors = [np.linalg.norm((y - exact).ravel()) for y in (to_host(got[name]), rounded[name])]
        assert errors[0] <= 20 * errors[1], (name, errors)


def textbook_in_float32(x, dout):
    """With its roundings."""
    from tinyprune import ops

    out, cache = ops.attention_forward(*x)
    return dict(zip(NAMES, (out, *ops.attention_backward(dout, cache)), strict=True)) | {"o": cache.o}


def test_backward_twice_gives_the_same_bits(place):
    x, dout = arguments()
    with installed(small("narrow")):
        _, cache = attention.attention_forward(*map(on_device, x), dropout=0.1, rng=np.random.default_rng(0))
        first, second = (attention.attention_backward(to_device(dout), cache) for _ in range(2))
    assert all(np.array_equal(to_host(a), to_host(b)) for a, b in zip(first, second, strict=True))


def test_views(place):
    """Arguments that lie in memory in another order, with gaps, or begin in the middle."""
    x, dout = arguments(T=6, M=6)
    expected = textbook(x, dout)

    def view(a):
        wider = np.zeros((*a.shape[:-1], a.shape[-1] + 3), np.float32)
        wider[..., 1:-2] = a
        return to_device(wider)[(*(a.ndim - 1) * (slice(None),), slice(1, -2))]

    with installed(small("narrow")):
        got = on_gpu([view(a) for a in x], view(dout))
    for name, exact in expected.items():
        np.testing.assert_allclose(to_host(got[name]), exact, rtol=0, atol=TOLERANCE * np.abs(exact).max())


@pytest.mark.parametrize("where", range(9))
def test_nan_is_noticed(place, where):
    """A model that has diverged must not look healthy."""
    x, dout = arguments(B=1, T=20, M=10, N=9, gate=(0.5, 1.0))
    x[where][(-1,) * x[where].ndim] = np.nan
    with installed(small("narrow")):
        got = on_gpu(x, dout)
    assert np.isnan(to_host(got["out"])).any()
    assert np.isnan(to_host(got["dq"])).any()


def test_a_closed_head_has_no_gradient_but_its_gate_has(place):
    x, dout = arguments(gate=(0.0, 1.0))
    with installed(small("narrow")):
        got = {name: to_host(a) for name, a in on_gpu(x, dout).items()}
    assert not any(got[name][..., 0, :].any() for name in ("dq", "dk", "dv", "dr", "du", "dw"))
    assert not any(got[name][0].any() for name in ("dpk", "dpv"))
    assert got["dgate"].all() and got["o"].all()


def test_no_matrix_of_weights_in_memory(place):
    """Twice the text takes about twice the memory."""
    from tinyprune.kernels.cuda.memory import POOL

    def peak(T):
        x, dout = (to_device(a) if a is not None else None for a in arguments(B=1, H=1, T=T, M=0, Dh=4, N=0)[0]), None
        before = POOL.most_used = POOL.entries_used
        attention.attention_forward(*x)
        return POOL.most_used - before

    with installed(small("narrow")):
        assert peak(256) < 3 * peak(128)


def test_bad_arguments(place):
    x, dout = arguments(B=2, H=2, T=5, M=3, Dh=4, N=6, gate=(1.0,))
    x, dout = [to_device(a) for a in x], to_device(dout)

    def broken(position, value):
        return [*x[:position], value, *x[position + 1 :]]

    with pytest.raises(ValueError, match=r"k must be \(2, S, 2, 4\) with S ≥ 5 to match q .*, got \(2, 4, 2, 4\)"):
        attention.attention_forward(*broken(1, x[1][:, :4]))
    with pytest.raises(ValueError, match="pk must be in the GPU's memory, got ndarray"):
        attention.attention_forward(*broken(6, to_host(x[6])))
    with pytest.raises(ValueError, match="r, u and w must be given together"):
        attention.attention_forward(*broken(3, None))
    with pytest.raises(ValueError, match="span must be at least 0 or None, got -1"):
        attention.attention_forward(*x, span=-1)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        attention.attention_forward(*x, dropout=1)
    q = to_device(np.zeros((1, 1, 1, 65), np.float32))
    with pytest.raises(ValueError, match="q must have Dh of at most 64 for the cuda backend, got 65"):
        attention.attention_forward(q, q, q)
    _, cache = attention.attention_forward(*x)
    with pytest.raises(ValueError, match=r"dout must have shape \(2, 5, 2, 4\) like the output, got \(2, 4, 2, 4\)"):
        attention.attention_backward(dout[:, :4], cache)
