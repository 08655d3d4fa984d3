"""What tests of all rooms share."""

import os

# Tests run beside each other: a thread that waits for another has to let others have its processor, not to spin on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tinyprune.kernels.gpu import gpu_present

# Without a GPU the CUDA kernels run in Numba's simulator, which it takes before it is first imported, or not at all.
if not gpu_present():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, fresh for every test."""
    return np.random.default_rng(2110)
