"""Each barrier is needed: without it the emulator finds a race, or a result is wrong.

But for the last one of `block_sum`, where a kernel does not use its shared memory again.
"""

import numpy as np
import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.emulator.program import GROUP, SHARED

from .checks import CHECKS, launched


def is_noticed(check, code, place):
    """Whether a check fails without the barrier at this place."""
    code[place]["group"] = GROUP.nothing
    try:
        check()
    except (TinypruneError, AssertionError):
        return True
    finally:
        code[place]["group"] = GROUP.barrier
    return False


def is_followed(code, place):
    """Whether a thread can get from this barrier to shared memory without passing another barrier."""
    places, seen = [place + 1], set()
    while places:
        place = places.pop()
        instruction = code[place]
        if place in seen or instruction["group"] == GROUP.barrier:
            continue
        seen.add(place)
        if instruction["group"] == GROUP.access and instruction["flags"] & SHARED:
            return True
        conditional = instruction["guard"] >= 0
        if instruction["group"] == GROUP.branch:
            places.append(instruction["to"])
        if instruction["group"] not in (GROUP.branch, GROUP.exit) or conditional:
            places.append(place + 1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_missing_barrier_is_noticed(emulated, name):
    kernels = launched(CHECKS[name], emulated)
    barriers = [(k, place) for k in kernels for place in np.flatnonzero(k.code["group"] == GROUP.barrier)]
    needed = [(k, place) for k, place in barriers if is_followed(k.code, place)]
    missed = [(k.name, k.lines[p]) for k, p in needed if not is_noticed(CHECKS[name], k.code, p)]
    assert len(needed) > len(barriers) / 2 and missed == []
