"""The textbook: every operation of the model in NumPy, forward beside backward, one operation a file.

`out, cache = x_forward(…)` and `dx, … = x_backward(dout, cache)`: gradients in argument order, shapes and dtypes of the
arguments; `dout` and `cache` are never modified. Everything works in float32 (training), float64 (checking) and
complex128 (checking to the last digit, see `tinyprune.gradcheck`).

`ops.engine` lists all operations: start there. Here they stand under the same names, computed by NumPy; beside them the
functions that need no engine: gates, dropout by itself, and what one head adds to its layer's output.
"""

from typing import Any

from tinyprune.ops.dropout import dropout_backward, dropout_forward
from tinyprune.ops.engine import OPERATIONS, Engine
from tinyprune.ops.hard_concrete import draw_noise, hard_concrete_backward, hard_concrete_forward, sigmoid
from tinyprune.ops.head_difference import head_difference
from tinyprune.ops.l0 import l0_backward, l0_forward, p_open
from tinyprune.ops.norm import squared_norm

NUMPY = Engine()
globals().update({name: getattr(NUMPY, name) for name in OPERATIONS})

__all__ = [name for name, value in globals().items() if callable(value) and name != "Any"]


def __getattr__(name: str) -> Any:
    """Refuse a name that is not here. (It tells type checkers that the names above are bound at import.)"""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
