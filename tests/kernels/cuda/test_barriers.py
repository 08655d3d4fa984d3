"""No barrier is there in vain: without it the emulator finds a race, or a result is wrong."""

import numpy as np
import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.emulator.program import GROUP

from .checks import CHECKS


def launched(check, emulator):
    """The kernels that a check launches."""
    for kernel in emulator.kernels.values():
        kernel.launches = 0
    check()
    return [kernel for kernel in emulator.kernels.values() if kernel.launches]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_missing_barrier_is_noticed(emulated, name):
    kernels = launched(CHECKS[name], emulated)
    barriers = [(k, place) for k in kernels for place in np.flatnonzero(k.code["group"] == GROUP.barrier)]
    missed = [(k.name, k.lines[p]) for k, p in barriers if not is_noticed(CHECKS[name], k.code, p)]
    assert barriers and missed == []
