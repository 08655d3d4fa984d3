"""Every gradient of the library, measured: operations entry by entry, and whole models."""

import numpy as np
import pytest
from small import ADAPTIVE, backend_with

from tinyprune import ops
from tinyprune.config import KINDS
from tinyprune.errors import UsageError
from tinyprune.gradcheck import Case, GradientRecord, check_all, check_gradients, model_case, operation_cases
from tinyprune.gradcheck.checker import leaves
from tinyprune.gradcheck.models import model_cases
from tinyprune.kernels.backend import get_backend
from tinyprune.ops.engine import Engine

CASES = operation_cases()
# The forward pass of a straight-through gate is a step: a difference quotient sees 0 or a jump, never the gradient of
# the soft gate that the backward pass stands for. The complex step can see it, so only central mode leaves these out.
SMOOTH = [case for case in CASES if "straight-through" not in case.operation]
STEPS = [case for case in CASES if "straight-through" in case.operation]
COMPILED = [*operation_cases(get_backend("numba")), *model_cases(get_backend("numba"))]
COMPILED = [case for case in COMPILED if "straight-through" not in case.operation]


def check(case: Case, **options) -> list[GradientRecord]:
    options |= {"name": case.operation, "argument_names": list(case.inputs)}
    return check_gradients(case.forward, case.backward, *case.inputs.values(), **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_operations_to_the_last_digits_by_complex_step(case):
    records = check(case)
    assert len(records) == sum(x.dtype == np.float64 for value in case.inputs.values() for x in leaves(value))
    for record in records:
        assert record.passed and record.relative_error <= 1e-12, record.message()


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.operation)
def test_operations_by_central_differences(case):
    for record in check(case, mode="central", directions=3):
        assert record.passed, record.message()


@pytest.mark.parametrize("case", STEPS, ids=lambda case: case.operation)
def test_central_differences_of_a_straight_through_gate_see_only_the_step(case):
    (record,) = check(case, mode="central")
    assert not record.passed
    assert record.expected == 0 and record.got != 0


MODELS = [(kind, True, kind in ADAPTIVE) for kind in KINDS]
OTHERS = [(kind, False, False) for kind in KINDS] + [(kind, True, False) for kind in KINDS if kind in ADAPTIVE]


# along two directions, or, for one model of each kind, entry by entry
@pytest.mark.parametrize(
    ("kind", "hard", "adaptive", "directions"),
    [(*model, 2) for model in MODELS + OTHERS]
    + [pytest.param(*model, None, marks=pytest.mark.slow) for model in MODELS],
)
def test_whole_models_to_the_last_digits_by_complex_step(kind, hard, adaptive, directions):
    case = model_case(kind, hard=hard, adaptive=adaptive)
    records = check(case, directions=directions)
    assert [record.argument for record in records] == [name for name in case.inputs for _ in range(directions or 1)]
    for record in records:
        assert record.passed and record.relative_error <= 1e-12, record.message()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_of_compiled_kernels_by_central_differences(kind):
    case = model_case(kind, False, kind in ADAPTIVE, get_backend("numba"))
    for record in check(case, mode="central", directions=1):
        assert record.passed, record.message()


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.operation)
def test_compiled_kernels_entry_by_entry(case):
    for record in check(case, mode="central"):
        assert record.passed, record.message()


def test_every_operation_with_a_gradient_has_a_case():
    with_gradient = {name.removesuffix("_backward") for name in ops.__all__ if name.endswith("_backward")}
    assert {case.operation.split(" (")[0] for case in CASES} == with_gradient


def test_check_all_gives_one_flat_record_for_each_case():
    records = check_all("embedding")
    names = ["embedding", "embedding (evaluation)", "embedding (another scale)"]
    assert [record["operation"] for record in records] == names
    for record in records:
        assert list(record) == ["operation", "argument", "mode", "relative_error", "passed"]
        assert record["passed"] is True and record["mode"] == "complex"
        assert record["relative_error"] <= 1e-12
    assert check_all("nothing has this name") == []


def test_check_all_by_central_differences_leaves_straight_through_gates_out():
    for mode, cases in (("complex", CASES), ("central", SMOOTH)):
        names = [case.operation for case in cases if "hard_concrete" in case.operation]
        assert [record["operation"] for record in check_all("hard_concrete", mode)] == names


def test_a_backend_without_complex_numbers_is_checked_by_central_differences():
    compiled = get_backend("numba")
    for prefix in ("layernorm", "context (", "projections (no bias"):
        (record,) = check_all(prefix, ops=compiled)
        assert record["mode"] == "central" and record["passed"] is True
    with pytest.raises(UsageError, match="mode must be central, got complex"):
        check_all("residual", "complex", compiled)
    assert check_all("residual", "complex", Engine())[0]["mode"] == "complex"


def test_a_backend_that_computes_on_a_gpu_is_refused():
    with pytest.raises(UsageError, match="in float64, and this backend computes in float32"):
        check_all("linear", ops=backend_with(on_device=True))


def test_check_all_reports_the_worst_argument_of_the_backend_that_it_is_given():
    def wrong_bias(dout, cache):
        dx, dscale, dbias = ops.layernorm_backward(dout, cache)
        return dx, dscale, 1.001 * dbias

    (record,) = check_all("layernorm", ops=backend_with(layernorm_backward=wrong_bias))
    assert record["argument"] == "bias" and record["passed"] is False


def test_words_of_the_catalogue_are_repeated_absent_and_of_every_cluster():
    inputs = {case.operation: case.inputs for case in CASES}
    for name, key in (("embedding", "ids"), ("cross_entropy", "targets"), ("adaptive_softmax", "targets")):
        assert len(np.unique(inputs[name][key])) < min(inputs[name][key].size, 7)
    for name, key in (("adaptive_embedding", "ids"), ("adaptive_softmax", "targets")):
        ends = np.cumsum([len(table) for table in inputs[name]["tables"]])
        for variant, present in (("", {0, 1, 2}), (" (last cluster absent)", {0, 1})):
            assert {int(c) for c in np.searchsorted(ends, inputs[name + variant][key].reshape(-1), "right")} == present


def test_sampled_gates_of_the_catalogue_are_in_every_state():
    """Below, inside and above the clip, off its kinks; and inside on both sides of ½, where straight-through turns."""
    soft = next(case for case in CASES if case.operation == "hard_concrete (soft, training)")
    gate, _ = soft.forward(soft.inputs["log_alpha"])
    inside = gate[(gate > 0) & (gate < 1)]
    assert (gate == 0).any() and (gate == 1).any() and (inside < 0.5).any() and (inside > 0.5).any()
    # Far more than a central step of 3e-6 away from every kink.
    assert inside.min() > 1e-3 and inside.max() < 1 - 1e-3 and np.abs(inside - 0.5).min() > 1e-3
