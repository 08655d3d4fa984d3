"""The gradient test for layers of other people's."""

import doctest
import re
from pathlib import Path

import tinyprune.testing

PAGE = Path(__file__).parents[1] / "notebooks" / "site" / "pages" / "ten-layers.md"


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
