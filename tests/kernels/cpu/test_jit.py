"""Compiled code is kept, told of, and forgotten when a source changes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinyprune
from tinyprune.kernels.cpu.jit import BOUNDS_CHECKED

COMPILE = """
import json
import numpy as np
from tinyprune.kernels.backend import get_backend
names, ends = [], []
cpu = get_backend("numba")
with cpu.compilations(names.append, lambda: ends.append(None)):
    total, other = cpu.squared_norms([np.arange(5, dtype=np.float32), np.ones(20_000, np.float32)])
assert len(ends) == len(names)
print(json.dumps({"names": names, "total": total, "other": other}))
"""


@pytest.fixture
def compiled(tmp_path):
    """What is compiled, and said, by a Python that sees a copy of the package in the test's folder, and this cache."""
    copy = tmp_path / "tinyprune"
    shutil.copytree(Path(tinyprune.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def compiled(cache="", **environment):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(cache)} | environment
        command = [sys.executable, "-c", COMPILE]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout), done.stderr

    return compiled


@pytest.mark.slow
def test_kept_until_any_source_changes_and_apart_with_and_without_bounds_checks(compiled, tmp_path):
    cache = tmp_path / "cache"
    first, _ = compiled(cache)
    assert (first["total"], first["other"]) == (30, 20_000)
    assert first["names"].count("sum_of_squares") == 2  # for one thread, and for several
    assert compiled(cache)[0] == first | {"names": []}
    other = compiled(cache, NUMBA_BOUNDSCHECK=str(int(not BOUNDS_CHECKED)))[0]
    assert other | {"names": []} == first | {"names": []}
    assert other["names"].count("sum_of_squares") == 2
    for changed in ("cpu/simd.py", "formulas.py"):  # not the kernel's own file
        source = tmp_path / "tinyprune" / "kernels" / changed
        source.write_text(source.read_text() + "\n# changed\n")
        assert compiled(cache)[0]["names"] == first["names"]


def test_says_so_when_nothing_can_be_kept(compiled, tmp_path):
    """No folder can be written: a warning that says what to do, and the kernels work."""
    for blocked in (tmp_path / "file", tmp_path / "tinyprune" / "kernels" / "cpu" / "__pycache__"):
        blocked.write_text("not a folder")
    home = str(tmp_path / "file")
    found, said = compiled(HOME=home, XDG_CACHE_HOME=home, PYTHONDONTWRITEBYTECODE="1")
    assert found["total"] == 30 and "set NUMBA_CACHE_DIR to a folder" in said
