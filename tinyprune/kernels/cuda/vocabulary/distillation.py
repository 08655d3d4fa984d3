"""Distillation, computed by NumPy: where a teacher has room beside its student, logits are few."""

import numpy as np

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import DeviceArray, to_device, to_host


def distillation_forward(
    logits: DeviceArray, targets: DeviceArray, teacher: DeviceArray, *, share: float
) -> tuple[np.inexact, tuple]:
    """Compute the loss of a student: `ops.distillation_forward`; it waits for the GPU."""
    return ops.distillation_forward(to_host(logits), to_host(targets), to_host(teacher), share=share)


def distillation_backward(dout: float, cache: tuple) -> DeviceArray:
    """Return the gradient of `distillation_forward` with respect to `logits`, as `ops.distillation_backward`."""
    return to_device(ops.distillation_backward(float(dout), cache))
