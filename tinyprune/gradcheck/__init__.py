"""Gradient checking: one checker for the library's tests, for the command line and for students."""

from tinyprune.gradcheck.catalogue import Case, operation_cases
from tinyprune.gradcheck.checker import GradientRecord, assert_gradients, check_gradients
from tinyprune.gradcheck.models import check_all, model_case

__all__ = [
    "Case",
    "GradientRecord",
    "assert_gradients",
    "check_all",
    "check_gradients",
    "model_case",
    "operation_cases",
]
