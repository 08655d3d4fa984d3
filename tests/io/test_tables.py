"""Tables: what a person reads."""

import pytest

from tinyprune.io.tables import show, text_table

RECORDS = [
    {"stage": "train", "heads_open": 32, "bits_per_character": 2.123456, "passed": True},
    {"stage": "finetune", "heads_open": 1234567890, "bits_per_character": 12.5, "passed": False},
]

SHOWN = [(True, "yes"), (False, "no"), (0, "0"), (1234567, "1,234,567"), (-1200, "-1,200")]
SHOWN += [(0.0, "0"), (2.123456, "2.123"), (0.001234567, "0.001235"), (0.00012345, "1.2e-04")]
SHOWN += [(-1e-15, "-1.0e-15")]
SHOWN += [(123.456, "123.5"), (9999.4, "9999"), (9999.96, "10,000"), (1234567.8, "1,234,568")]
SHOWN += [("a name", "a name"), (None, "–"), ([8, 0], "[8, 0]")]


@pytest.mark.parametrize(("value", "shown"), SHOWN)
def test_cells(value, shown):
    assert show(value) == shown


def test_text_is_aligned_numbers_to_the_right():
    """A column is as wide as its name or its widest cell."""
    assert text_table(RECORDS).splitlines() == [
        "stage        heads open  bits per character  passed",
        "────────  ─────────────  ──────────────────  ──────",
        "train                32               2.123  yes",
        "finetune  1,234,567,890                12.5  no",
    ]
