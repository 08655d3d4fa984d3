"""Does the checker find bugs? Plant them in the real source, one at a time, and see.

A bug counts as found when a gradient does not pass or the checker raises its AssertionError; an edit that merely
crashes does not, and fails its test.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from planted_bugs import BUGS, MODEL_BUGS, OPERATION_BUGS, Bug
from small import backend_with

import tinyprune
from tinyprune import ops
from tinyprune.config import KINDS
from tinyprune.gradcheck import Case, check_gradients, model_case, operation_cases
from tinyprune.kernels.backend import Backend

# Modules that import their predecessors in this list, and must be executed anew when one of those is edited.
MODEL_MODULES = ["model.parameters", "model.gating", "model.layers", "model.transformer", "gradcheck.catalogue"]


def execute(module: str, right: str = "", wrong: str = "") -> ModuleType:
    """A fresh copy of `tinyprune.{module}`, with `wrong` where its source says `right`."""
    path = Path(tinyprune.__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    if right:
        assert source.count(right) == 1, f"{path.name} must hold exactly once: {right}"
        source = source.replace(right, wrong)
    copy = ModuleType(f"tinyprune.{module}")
    exec(compile(source, f"<copy of {path.name}>", "exec"), vars(copy))
    return copy


def edited_operations(module: str, right: str = "", wrong: str = "") -> Backend:
    """The textbook's operations, those of `module` from its edited copy."""
    edited = vars(execute(module, right, wrong))
    return backend_with(**{name: edited[name] for name in ops.__all__ if name in edited})


def edited_model_case(monkeypatch, module: str, right: str, wrong: str, kind: str, adaptive: bool, hard: bool) -> Case:
    """`model_case` on top of the edited copy of `module`: what imports it is executed anew and finds the copy."""
    first = MODEL_MODULES.index(module)
    for later in MODEL_MODULES[first:]:
        edit = (right, wrong) if later == module else ()
        # Python looks up `from tinyprune.model.layers import …` here. Undone at the end of the test.
        monkeypatch.setitem(sys.modules, f"tinyprune.{later}", execute(later, *edit))
    return sys.modules["tinyprune.gradcheck.catalogue"].model_case(kind, hard=hard, adaptive=adaptive)


def found(case: Case, mode: str, directions: int | None = None) -> bool:
    try:
        records = check_gradients(case.forward, case.backward, *case.inputs.values(), mode=mode, directions=directions)
    except AssertionError:
        return True
    return not all(record.passed for record in records)


def cases_of(module: str, operations: Backend) -> list[Case]:
    """The cases of one operation, the fullest first (the catalogue goes from simple to full)."""
    operation = module.removeprefix("ops.")
    return [case for case in reversed(operation_cases(operations)) if case.operation.split(" (")[0] == operation]


def smooth(cases: list[Case]) -> list[Case]:
    """Without the straight-through gates: a step has no central difference."""
    return [case for case in cases if "straight-through" not in case.operation]


def label(bug: Bug) -> str:
    return f"{bug.module.split('.')[1]}: {bug.what}"


@pytest.mark.parametrize("bug", OPERATION_BUGS, ids=label)
def test_a_bug_in_an_operation_is_found(bug):
    cases = cases_of(bug.module, edited_operations(bug.module, bug.right, bug.wrong))
    assert any(found(case, "complex") for case in cases)
    assert any(found(case, "central") for case in smooth(cases))


@pytest.mark.parametrize("bug", MODEL_BUGS, ids=label)
def test_a_bug_in_the_wiring_of_the_model_is_found(bug, monkeypatch):
    for mode, hard in (("complex", True), ("central", False)):
        case = edited_model_case(monkeypatch, bug.module, bug.right, bug.wrong, bug.model, bug.adaptive, hard)
        assert found(case, mode, directions=2), mode


# Found because of the bugs, and not because of the planting.


@pytest.mark.parametrize("module", sorted({bug.module for bug in OPERATION_BUGS}))
def test_no_false_alarm_for_an_operation_executed_without_an_edit(module):
    cases = cases_of(module, edited_operations(module))
    assert cases
    assert not any(found(case, "complex") for case in cases)
    assert not any(found(case, "central") for case in smooth(cases))


@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm_for_a_model_executed_without_an_edit(kind, adaptive, monkeypatch):
    for mode, hard in (("complex", True), ("central", False)):
        case = edited_model_case(monkeypatch, "model.parameters", "", "", kind, adaptive, hard)
        assert case.forward.__code__.co_filename == "<copy of catalogue.py>"
        assert not found(case, mode, directions=2), mode


def test_a_model_bug_shows_entry_by_entry_too(monkeypatch):
    """The tests above take directions, for speed; what users run takes every entry."""
    bug = next(bug for bug in MODEL_BUGS if bug.what.startswith("R of one layer"))
    case = edited_model_case(monkeypatch, bug.module, bug.right, bug.wrong, bug.model, bug.adaptive, hard=True)
    records = check_gradients(case.forward, case.backward, *case.inputs.values(), argument_names=list(case.inputs))
    assert [record.argument for record in records if not record.passed] == ["R"]
    case = model_case(bug.model, hard=True)
    assert not found(case, "complex", directions=1)


# The table keeps what it promises.


def test_there_are_many_bugs_in_every_operation_and_in_the_model():
    assert len(BUGS) >= 40
    assert len({label(bug) for bug in BUGS}) == len(BUGS)
    operations = {name.removesuffix("_backward") for name in ops.__all__ if name.endswith("_backward")}
    modules = {f"ops.{operation}" for operation in operations} | {"model.layers", "model.transformer"}
    for module in modules:
        assert sum(bug.module == module for bug in BUGS) >= 4, module
