"""The gradient test for layers of other people's."""

import doctest
import re
from pathlib import Path

import numpy as np

import tinyprune.testing
from tinyprune import ops

PAGES = Path(__file__).parents[1] / "notebooks" / "site" / "pages"
PAGE = PAGES / "ten-layers.md"


def test_documented_convolution_runs_and_its_mistake_is_found():
    result = doctest.testmod(tinyprune.testing)
    assert result.attempted >= 7 and result.failed == 0


def test_ten_layers_pass_and_the_mistake_says_what_the_page_says(capsys):
    page, names = PAGE.read_text("utf-8"), {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    assert sum(name.endswith("_forward") for name in names) == 10
    (said,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    printed = capsys.readouterr().out
    # Digits after the sixth differ by rounding.
    assert re.sub(r"(\.\d{6})\d+", r"\1", printed) == re.sub(r"(\.\d{6})\d+", r"\1", said)


def test_the_papers_heads_have_the_gradients_of_the_package(rng):
    names: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", (PAGES / "the-papers-heads.md").read_text("utf-8"), re.DOTALL)
    exec(compile(block, "the-papers-heads.md", "exec"), names)
    q, k, v, pk, pv, do = (rng.standard_normal((rows, 4)) for rows in (3, 5, 5, 7, 7, 3))
    _, cache = ops.attention_forward(*(x[None, :, None] for x in (q, k, v)), pk=pk[None], pv=pv[None])
    package = [x for x in ops.attention_backward(do[None, :, None], cache) if x is not None]
    shown = names["head_backward"](do, cache.a[0, 0], q, k, v, pk, pv)
    for mine, theirs in zip(shown, package, strict=True):
        np.testing.assert_allclose(mine, theirs.reshape(mine.shape), rtol=1e-10)
