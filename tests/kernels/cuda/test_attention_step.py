"""One token at a time: a text that is taken over, errors. The contract suite has the rest."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import to_device, to_host

from ..compare import make_step, step_example
from .compare import assert_close, cuda, in_float64, on_device

TEXT = np.random.default_rng(4).standard_normal((5, 11), np.float32)


def example():
    return step_example(np.float32, D=11, H=2, N=3, C=3)


@pytest.mark.parametrize("n", [0, 2, 7])
def test_a_text_taken_over(place, n):
    """Into 3 places, in place of what was read before."""
    p = example()
    keys, values = np.random.default_rng(5).standard_normal((2, n, 2, 5), np.float32)
    expected, got = (
        make_step(ops.AttentionStep, **in_float64(p)),
        make_step(cuda.AttentionStep, **on_device(p)),
    )
    got(to_device(TEXT[4]))
    got.fill(to_device(keys), to_device(values))
    expected.fill(in_float64(keys), in_float64(values))
    for row in TEXT[:4]:
        assert_close(got(to_device(row)), expected(in_float64(row)))


def test_nothing_is_written_when_something_does_not_fit(place):
    step = make_step(cuda.AttentionStep, **on_device(example()))
    step(to_device(TEXT[0]))
    before = to_host(step.keys), to_host(step.values)
    step.weights = step.weights._replace(u=to_device(np.zeros((3, 5), np.float32)))
    with pytest.raises(ValueError, match=r"u must have shape \(2, 5\)"):
        step(to_device(TEXT[1]))
    assert np.array_equal((to_host(step.keys), to_host(step.values)), before) and step.read == 1
