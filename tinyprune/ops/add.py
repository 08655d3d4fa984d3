"""Add: where paths of the gradient join.

out = a + b
"""

from numpy.typing import NDArray


def check_same_shape(**arrays: NDArray) -> None:
    """Raise ValueError unless all have the shape of the first. Messages use the keyword names."""
    (first, like), *others = arrays.items()
    for name, value in others:
        if value.shape != like.shape:
            raise ValueError(f"{name} must have the shape of {first}, {like.shape}, got {value.shape}")


def add(a: NDArray, b: NDArray) -> NDArray:
    """Return a + b, a new array.

    Args:
        a, b: of the same shape, any float or complex dtype; they may be views, with gaps in memory.

    Raises:
        ValueError: if the shapes differ; nothing is broadcast.
    """
    check_same_shape(a=a, b=b)
    return a + b
