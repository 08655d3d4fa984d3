"""The backends "cuda" and "cuda-tf32": every operation is there, with the textbook's name and signature."""

import inspect

import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend

cuda = get_backend("cuda")


# A few numbers for each head, or nothing but noise: drawn and looked at in main memory.
HOST = {"draw_gumbel", "draw_noise", "p_open", "sigmoid"}
LEFT = HOST | {"context_backward"}  # of views it makes a view, wherever they lie


@pytest.mark.parametrize("name", ["cuda", "cuda-tf32"])
def test_every_operation_is_there_with_the_textbooks_signature(place, name):
    backend = get_backend(name)
    left = {operation for operation in ops.__all__ if getattr(backend, operation) is getattr(ops, operation)}
    assert left == LEFT
    for operation in set(ops.__all__) - LEFT:
        expected, got = (inspect.signature(getattr(module, operation)).parameters for module in (ops, backend))
        # `parts` is how the textbook's adaptive operations are given others; a `precision` is a GPU's own affair.
        assert [(p.name, p.kind, p.default) for p in got.values() if p.name != "precision"] == [
            (p.name, p.kind, p.default) for p in expected.values() if p.name != "parts"
        ], operation


def test_tf32_has_its_own_products_and_nothing_else(place):
    one, other = (get_backend(name) for name in ("cuda", "cuda-tf32"))
    different = {name for name in ops.__all__ if getattr(one, name) is not getattr(other, name)}
    assert different == {
        "adaptive_embedding_forward",
        "adaptive_log_probabilities",
        "adaptive_softmax_forward",
        "feedforward_forward",
        "linear_forward",
        "projections_forward",
    }
