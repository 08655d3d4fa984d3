"""Work that waits: the gradients of parameters are computed together, when somebody reads the first of them.

Nobody needs them before backward is done, and a launch takes Python longer than a small array takes the GPU. An
operation that makes one hands in a task, whose result is an array like any other. As soon as a kernel or a copy asks
where one of these arrays lies, all tasks that wait are done, in a few launches.

What a task reads must not change before. Whoever writes over an array therefore calls `before_writing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.device.many import Launch, launch_all
from tinyprune.kernels.cuda.device.memory import Lease

ROOM = 2**26  # bytes that tasks may keep from being freed; beyond them a launch is short compared with its work


class Task(NamedTuple):
    """An array that is to be computed."""

    out: DeviceArray
    reads: Sequence[DeviceArray]
    order: int  # tasks with lower numbers come first
    planned: Callable[[list[Task]], tuple[list[Launch], list[Task]]]  # of all with one order; and what is then left
    what: Any = None


WAITING: list[Task] = []
READ: dict[Lease, int] = {}  # what they read, and bytes


def wait(task: Task) -> DeviceArray:
    """Let a task wait; return its result."""
    for x in task.reads:
        if x.lease.due:
            finish()
        READ[x.lease] = x.lease.size
    WAITING.append(task)
    task.out.lease.due = finish
    if sum(READ.values()) > ROOM:
        finish()
    return task.out


def before_writing(*arrays: DeviceArray) -> None:
    """Do the tasks that wait, if one of them reads an array that is about to change."""
    if any(x.lease in READ for x in arrays):
        finish()


def finish() -> None:
    """Do all tasks that wait. If that fails, they go on waiting."""
    for task in WAITING:
        task.out.lease.due = None
    left, launches = list(WAITING), []
    try:
        while left:
            first = min(task.order for task in left)
            now = [task for task in left if task.order == first]
            planned, then = now[0].planned(now)
            left, launches = [task for task in left if task.order > first] + then, launches + planned
        launch_all(launches)
    except BaseException:
        for task in WAITING:
            task.out.lease.due = finish
        raise
    WAITING.clear()
    READ.clear()
