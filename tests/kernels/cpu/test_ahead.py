"""Attention, compiled in a second process: the kernels that a model needs, and no process left."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import tinyprune
from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu import ahead

COMMON = Path(__file__).parents[2] / "common"  # where the program finds its small model
# A step of a model after the second process: what of attention had to be compiled?
PROGRAM = """
from dataclasses import replace
from small import small_config, small_model
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu import ahead
import numpy as np

numba, compiled = get_backend("numba"), []
assert ahead.worthwhile()
with numba.compiling_ahead() as others:
    assert others is not None
assert not ahead.worthwhile()
model = replace(small_model(small_config("all-attention"), dtype=np.float32), ops=numba)
ids = np.zeros((2, model.config.T), np.int64)
with numba.compilations(compiled.append, lambda: None):
    loss, _, cache = model.loss(ids, ids)
    model.backward(1.0, cache)
print(*compiled)
"""


@pytest.mark.slow
def test_they_are_the_kernels_of_a_model(tmp_path):
    """In a copy of the package with what was compiled so far, but for attention: that takes long enough."""
    package, ignored = Path(tinyprune.__file__).parent, shutil.ignore_patterns("attention.*.nb?")
    shutil.copytree(package, tmp_path / "tinyprune", ignore=ignored)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(COMMON)))}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    compiled = set(done.stdout.split())
    assert compiled.isdisjoint({"forward_heads", "head_forward", "backward_heads", "head_backward", "softmax_rows"})


def test_zeros_in_place_of_attention_have_the_same_shapes(rng):
    shapes = [(2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 4), (5, 2, 4), (2, 4), (2, 4), (2, 6, 4), (2, 6, 4), (2,)]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    for given in (arrays, [*arrays[:3], *[None] * 6]):
        expected, saved = ops.attention_forward(*given, span=3)
        out, cache = ahead.zero_forward(*given, span=3)
        assert out.shape == expected.shape == cache.o.shape and out.dtype == np.float32
        pairs = zip(ahead.zero_backward(out, cache), ops.attention_backward(expected, saved), strict=True)
        assert all(np.shape(x) == np.shape(y) for x, y in pairs)


def test_not_with_one_processor_or_kernels_that_are_there(tmp_path, monkeypatch):
    fill = SimpleNamespace(stats=SimpleNamespace(cache_path=str(tmp_path)))
    monkeypatch.setattr(ahead.jit, "fill", fill)
    for threads in (1, 2):
        monkeypatch.setattr(ahead.numba.config, "NUMBA_DEFAULT_NUM_THREADS", threads)
        assert ahead.worthwhile() == (threads == 2)
    (tmp_path / "attention.backward-1.py311.nbi").touch()
    assert not ahead.worthwhile()
    with get_backend("numba").compiling_ahead() as others:
        assert others is None


def test_the_process_does_not_outlive_an_error(monkeypatch):
    started, start = [], subprocess.Popen

    def sleep(command, **options):
        started.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    monkeypatch.setattr(ahead.subprocess, "Popen", sleep)
    with pytest.raises(KeyError), ahead.second_process():
        raise KeyError
    assert started[0].poll() is not None
    monkeypatch.setattr(ahead.subprocess, "Popen", mock.Mock(side_effect=OSError))
    with ahead.second_process():  # all goes on without it
        pass
