"""The ladder's benchmark: every rung does the same work, and the records climb."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from tinyprune import ops
from tinyprune.bench.benchmarks import ladder
from tinyprune.bench.command import Options
from tinyprune.bench.figures import plot_benchmark
from tinyprune.bench.shapes import attention_arguments, matrices, model_shape
from tinyprune.errors import UsageError
from tinyprune.kernels.ladder import attention, matmul


def row(subject: str, gflops: float, ratio: float | None = 1.0) -> dict:
    return {"benchmark": "ladder", "shape": "8×8", "subject": subject, "gflops": gflops, "ratio_to_subject": ratio}


def records() -> list[dict]:
    first = ladder.climb("matmul", [row("low", 2.0), row("middle", 30.0), row("top", 60.0)], [row("beside", 80.0)])
    return first + ladder.climb("attention", [row("low", 5.0, None), row("top", 50.0)])


def test_records_climb():
    low, middle, top, beside, *others = records()
    assert [r["times_faster"] for r in (low, middle, top, beside)] == [None, 15, 2, None]
    assert [r["ratio_to_subject"] for r in (low, middle, top, beside)] == [30, 2, 1, 0.75]
    assert [r["ratio_to_subject"] for r in others] == [None, 1]  # a ratio that was void stays so
    assert [r["ladder"] for r in others] == ["attention"] * 2


def test_rungs_are_given_the_same_as_other_benchmarks():
    a, b = matrices(8, 8, 8, "A·B")
    for rung in ("Python loops", "loop order"):
        np.testing.assert_allclose(ladder.matmul_workload(rung, 8).results()["out"], a @ b, atol=1e-5)


@pytest.mark.parametrize(("mask", "span"), [("same-length", 6), ("causal", None)])
def test_attention_has_the_mask_of_its_model(mask, span):
    shape = {"name": "relative-d128", "T": 8, "M": 6, "B": 1, "mask": mask}
    arrays, _ = attention_arguments(model_shape(**shape))
    expected, _ = ops.attention_forward(**arrays, span=span)
    np.testing.assert_array_equal(ladder.attention_workload("textbook (NumPy)", **shape).results()["out"], expected)


def test_names_are_those_of_rungs():
    assert ladder.N_LOW.keys() < matmul.RUNGS.keys()
    contenders = [ladder.attention_rung(rung, name="relative-d128") for rung in attention.RUNGS]
    assert [c.library for c in contenders] == ["numpy"] + ["ours"] * (len(contenders) - 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (("tiny", "small"), "the ladder of attention stands at one shape, got tiny, small"),
        (("plain-d128",), "needs relative positions and persistent vectors, got plain-d128"),
        (("tiny",), "needs relative positions and persistent vectors, got tiny"),
    ],
)
def test_shapes_that_have_no_ladder(shapes, message, monkeypatch):
    monkeypatch.setattr(ladder, "matmul_ladder", lambda *_: [])
    with pytest.raises(UsageError, match=message):
        ladder.run_ladder(Options("numba", shapes=shapes))


@pytest.mark.slow
def test_a_small_one(monkeypatch):
    monkeypatch.setattr(ladder, "N", 64)
    monkeypatch.setattr(ladder, "N_LOW", {"Python loops": 8, "compiled": 16})
    rows = ladder.run_ladder(Options("numba", shapes=("relative-d128",), rounds=1, threads=1))
    assert [r["subject"] for r in rows] == [*matmul.RUNGS, "NumPy's BLAS", *attention.RUNGS]
    assert [r["shape"] for r in rows[:3]] == ["8×8×8", "16×16×16", "64×64×64"]
    assert all(r["gflops"] > 0 and r["median_ms"] > 0 for r in rows)


def test_picture():
    figure = plot_benchmark(records())
    figure.draw_without_rendering()
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["low", "middle", "top", "beside"]
    assert [bar.get_width() for bar in first.patches] == [2, 30, 60, 80]
    assert [text.get_text() for text in first.texts] == ["", "15×", "2×", ""]
    white = [bar.get_facecolor() == to_rgba("white") for bar in (*first.patches, *second.patches)]
    assert white == [False, False, False, True, False, False]
    box = figure.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()
