"""Patterns of shapes: what fits, and how an error names what does not."""

import re

import pytest

from tinyprune.ops.shapes import check_shapes, compare

FITS = [("x: ... K, W: K O, b?: O", [(2, 3, 4), (4, 5), None]), ("x: ... K, dx: ... K", [(4,), (4,)])]
FITS += [("q: T H Dh, k: S≥T H Dh, r: ≥S H Dh, Wo: H·Dh D", [(2, 3, 4), (2, 3, 4), (5, 3, 4), (12, 1)])]
FITS += [("Wq: D H·Dh, bq: H·Dh, Wk: D 2·Dh, bk: 2·Dh", [(3, 4), (4,), (3, 6), (6,)])]
FITS += [("x: 0 D, m: D≥0", [(0, 0), (0,)])]


@pytest.mark.parametrize(("pattern", "shapes"), FITS)
def test_what_fits(pattern, shapes):
    compare(pattern, tuple(shapes))


@pytest.mark.parametrize(
    ("pattern", "shapes", "message"),
    [
        ("x: B T D", [(2, 3)], "x must have shape (B, T, D), got (2, 3)"),
        ("x: ... K", [()], "x must have shape (..., K), got ()"),
        ("x: ... K, y: ... K", [(2, 4), (3, 4)], "y must have shape (2, 4) to match x (2, 4), got (3, 4)"),
        ("x: D, b?: D", [(4,), (1, 4)], "b must have shape (4,) to match x (4,), got (1, 4)"),
        ("q: T D, k: S≥T D", [(3, 4), (2, 4)], "k must have shape (S ≥ 3, 4) to match q (3, 4), got (2, 4)"),
        ("x: D≥1", [(0,)], "x must have shape (D ≥ 1,), got (0,)"),
        ("x: T D, P: ≥T D", [(3, 4), (2, 4)], "P must have shape (≥ 3, 4) to match x (3, 4), got (2, 4)"),
        ("o: H Dh, bo: D, Wo: H·Dh D", [(3, 5), (7,), (14, 7)], "Wo must have shape (15, 7) to match o (3, 5) and bo"),
        ("x: N N", [(2, 3)], "x must have shape (N, N), got (2, 3)"),
    ],
)
def test_what_does_not_fit_is_named(pattern, shapes, message):
    for _ in range(2):  # what fits is remembered, an error is not
        with pytest.raises(ValueError, match=re.escape(message)):
            compare(pattern, tuple(shapes))


def test_none_is_refused_where_it_may_not_be():
    with pytest.raises(TypeError, match="W must be an array, got None"):
        check_shapes("b?: O, W: K O", None, None)
