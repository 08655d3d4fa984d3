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

PACKAGE = Path(tinyprune.__file__).parent

COMPILE = """
import json
import numpy as np
from tinyprune.kernels.backend import get_backend
names, ends = [], []
cpu = get_backend("numba")
with cpu.compilations(names.append, lambda: ends.append(None)):
    total = cpu.squared_norm(np.arange(5, dtype=np.float32))
assert len(ends) == len(names)
print(json.dumps({"names": names, "total": total}))
"""


def compile_in_a_new_process(package: Path, cache: Path, **environment: str) -> dict:
    """What is compiled by a Python that sees the package at `package` and compiled code in `cache`."""
    environment = os.environ | {"PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(cache)} | environment
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, cwd=package.parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kept_until_any_source_changes_and_apart_with_and_without_bounds_checks(tmp_path):
    copy = tmp_path / "tinyprune"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    first = compile_in_a_new_process(copy, tmp_path / "cache")
    assert first["total"] == 30 and "sum_of_squares" in first["names"]
    assert compile_in_a_new_process(copy, tmp_path / "cache")["names"] == []
    other = compile_in_a_new_process(copy, tmp_path / "cache", NUMBA_BOUNDSCHECK=str(int(not BOUNDS_CHECKED)))
    assert other == first
    for changed in ("cpu/simd.py", "formulas.py"):  # not the kernel's own file
        source = copy / "kernels" / changed
        source.write_text(source.read_text() + "\n# changed\n")
        assert compile_in_a_new_process(copy, tmp_path / "cache")["names"] == first["names"]


def test_says_so_when_nothing_can_be_kept(tmp_path):
    """No folder can be written: a warning that says what to do, and the kernels work."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    copy = tmp_path / "tinyprune"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels" / "cpu" / "__pycache__").write_text("not a folder")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "HOME": str(blocked),
        "XDG_CACHE_HOME": str(blocked),
        "NUMBA_CACHE_DIR": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["total"] == 30
    assert "set NUMBA_CACHE_DIR to a folder" in done.stderr
