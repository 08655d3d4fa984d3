"""Check the arguments of an operation; its kernels check nothing."""

from collections.abc import Sequence

from tinyprune.kernels.cuda.device.array import FLOAT32, DeviceArray
from tinyprune.ops.add import check_same_shape


def check_floats(**arrays: DeviceArray | Sequence[DeviceArray]) -> None:
    """Raise ValueError unless all, or all of a list, are float32 in the GPU's memory. Messages use the keywords."""
    for name, value in arrays.items():
        if isinstance(value, list | tuple):
            check_floats(**{f"{name}[{i}]": x for i, x in enumerate(value)})
        elif not isinstance(value, DeviceArray):
            raise ValueError(
                f"{name} must be in the GPU's memory, got {type(value).__name__}; to_device copies it there"
            )
        elif value.dtype != FLOAT32:
            raise ValueError(f"{name} must be float32 for the cuda backend, got {value.dtype}")


def check_alike(**arrays: DeviceArray) -> None:
    """Raise ValueError unless all are float32, and of the shape of the first."""
    check_floats(**arrays)
    check_same_shape(**arrays)


def check_gradient(dout: DeviceArray, shape: tuple[int, ...], name: str = "dout") -> None:
    """Raise ValueError unless `dout`, called `name` in messages, is float32 of the output's shape."""
    check_floats(**{name: dout})
    if dout.shape != shape:
        raise ValueError(f"{name} must have shape {shape} like the output, got {dout.shape}")


def check_in_place(**arrays: DeviceArray) -> None:
    """Raise ValueError for an array that is not contiguous: a kernel would update a copy of it."""
    for name, value in arrays.items():
        if not value.contiguous:
            raise ValueError(
                f"{name} is updated in place and must be C-contiguous, got strides {value.strides} for shape "
                f"{value.shape}; hand over a copy"
            )
