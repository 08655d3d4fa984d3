"""Trade-off: quality against the number of heads that stay, by every method."""

from __future__ import annotations

from collections.abc import Iterator

from tinyprune.experiments.experiment import Entry, Finished, Picture, Plan, Study
from tinyprune.experiments.intervals import compared
from tinyprune.experiments.methods import BASELINE, UNPRUNED
from tinyprune.experiments.pictures import plot_differences, plot_tradeoff
from tinyprune.io.tables import Record


def entries(plan: Plan) -> list[Entry]:
    """Every method at every share of the heads, and what they are held against."""
    made = []
    for config in plan.configs():
        made += [plan.entry(name, config, name) for name in (BASELINE, UNPRUNED)]
        made += [plan.entry(method, config, method, share) for method in plan.methods for share in plan.shares]
    return made


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare every method with Michel's criterion, random heads and gates."""
    return {"comparison": compared(done.tables["results"], "michel", "random", "gates")}


def pictures(done: Finished) -> Iterator[Picture]:
    """Draw the pictures."""
    found = done.tables["comparison"]
    caption = "Bits per character against heads that stay, with error bars"
    figure = plot_tradeoff(done.tables["summary"], found)
    if len({r["heads_open"] for r in found}) == 1:
        of = found[0]["reference"]
        caption = f"How many more bits per character than {of} each method needs, with intervals"
        figure = plot_differences([r for r in found if r["reference"] == of])
    yield "tradeoff", caption, figure


STUDY = Study(entries, tables, pictures)
