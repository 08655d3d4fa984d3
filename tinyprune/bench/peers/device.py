"""Where PyTorch computes: on the processor, or on the GPU when ours does."""

from __future__ import annotations

import torch

from tinyprune.bench.work import Gauge
from tinyprune.errors import UsageError


def torch_device(device: str) -> torch.device:
    """The processor, or the GPU.

    Args:
        device: "cpu"; "cuda", with products in float32 proper; "cuda-tf32", with products of numbers that have 10 of
            their 23 bits left, by tensor cores.

    Raises:
        UsageError: if this PyTorch cannot compute on a GPU.
    """
    kind, _, tf32 = device.partition("-")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"PyTorch {torch.__version__} finds no GPU: install one that is built for CUDA")
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return torch.device(kind)


def wait_for(device: torch.device) -> None:
    """Return when all is computed. The processor has nothing pending; a GPU is told what to do and answers later."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def gauge(device: torch.device) -> Gauge | None:
    """Of the memory that tensors take on a GPU."""
    if device.type != "cuda":
        return None

    def begin() -> int:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    return Gauge(begin, torch.cuda.max_memory_allocated)
