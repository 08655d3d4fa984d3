"""How threads wait for each other: the decision, and what it changes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tinyprune.kernels import waiting
from tinyprune.kernels.cpu.jit import BOUNDS_CHECKED
from tinyprune.kernels.waiting import VARIABLES, is_busy, short_block_time, start_watch


@pytest.fixture
def undecided(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("before", "waited", "computed", "after"),
    [
        (False, 0.001, 0.4, False),
        (False, 0.1, 0.2, True),  # half of the time was others'
        (True, 0.03, 0.4, True),  # no change at every small disturbance
        (True, 0.001, 0.4, False),
        (False, 0.01, 0.01, False),  # too little was computed to tell
        (True, 0.0, 0.01, True),
    ],
)
def test_when_a_machine_is_busy(before, waited, computed, after):
    assert is_busy(before, waited, computed) is after


def test_the_second_team_is_open_as_long_as_the_machine_is_busy(monkeypatch):
    """Looks at a made-up machine: idle, twice busy, idle, and then the end."""
    waited, done = iter([0.0, 0.0, 1.0, 2.0, 2.0]), []
    computed = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(waiting, "waiting_seconds", lambda: next(waited))
    monkeypatch.setattr(waiting.time, "process_time", lambda: next(computed))
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: done.append(names()))

    def names():
        return [thread.name for thread in threading.enumerate() if thread.name.endswith("second team")]

    with pytest.raises(StopIteration):
        waiting.watch(lambda: True, lambda: None)
    assert [len(found) for found in done] == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("name", VARIABLES)
def test_the_user_decides(name, undecided, monkeypatch):
    with short_block_time():
        assert os.environ["KMP_BLOCKTIME"] == "1"
    assert "KMP_BLOCKTIME" not in os.environ
    monkeypatch.setenv(name, "0")
    with short_block_time():
        assert os.environ.get("KMP_BLOCKTIME") == ("0" if name == "KMP_BLOCKTIME" else None)
    before = threading.active_count()
    start_watch(lambda: False, lambda: None)
    assert threading.active_count() == before


# The other thread waits actively for some milliseconds after each loop, or sleeps: its processor time tells.
PROGRAM = """
import time
import numpy as np
from tinyprune.kernels.cpu.jit import fill, has_teams
from tinyprune.kernels.waiting import second_team

def used():
    for _ in range(3):
        fill(np.empty(1000))
    start = time.process_time()
    for _ in range(100):
        fill(np.empty(1000))
        time.sleep(0.002)
    return time.process_time() - start

assert not has_teams()
active = used()
assert has_teams()
with second_team(lambda: fill(np.empty(1000))):
    time.sleep(0.1)
    asleep = used()
print(active, asleep, used())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Numba does not use GNU's libgomp")
@pytest.mark.skipif(BOUNDS_CHECKED, reason="with bounds checks kernels run in one thread")
def test_with_a_second_team_threads_wait_asleep(undecided):
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd=root, text=True, capture_output=True)
    assert not done.stderr and done.returncode == 0
    active, asleep, active_again = map(float, done.stdout.split())
    assert asleep < 0.5 * min(active, active_again)
