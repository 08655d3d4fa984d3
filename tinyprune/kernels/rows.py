"""Where the rows of a matrix lie in memory: what the engines that compile products have to find out of their arrays.

An array (..., columns) stands for the matrix of all its rows. Often they are at equal distances, also in a view. Or
they come in groups: of the last positions of each batch entry, (B, T, D), the T rows of an entry are at equal
distances, and so are the entries.
"""

from functools import lru_cache
from typing import NamedTuple


class Rows(NamedTuple):
    """Row i of group g begins at entry g · group + i · row."""

    groups: int
    group: int  # entries from one group to the next
    row: int  # entries from one row to the next


@lru_cache(maxsize=4096)
def rows_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> Rows | None:
    """Return the rows of an array (..., columns), or None if its rows are not contiguous or not evenly spaced.

    strides: in entries.
    """
    *lead, columns = shape
    if columns > 1 and strides[-1] != 1:
        return None
    axes: list[tuple[int, int]] = []  # length of an axis of rows, and entries from one to the next
    for n, stride in zip(lead, strides, strict=False):
        if n > 1:
            # an axis that only continues the one before it is merged with it
            before = axes.pop()[0] if axes and axes[-1][1] == n * stride else 1
            axes.append((before * n, stride))
    if len(axes) > 2:
        return None
    if len(axes) == 2:
        (groups, group), (_, row) = axes
        return Rows(groups, group, row)
    return Rows(1, 0, axes[0][1] if axes else columns)


def in_groups(rows: int, *matrices: Rows) -> list[Rows]:
    """Cut matrices of so many rows, which are read side by side, into the groups that some of them have."""
    most = max(m.groups for m in matrices)
    return [m._replace(groups=most, group=rows // most * m.row) if m.groups == 1 < most else m for m in matrices]
