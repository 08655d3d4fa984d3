"""Where PyTorch computes: on the processor, or on the GPU when ours does."""

from __future__ import annotations

import torch

from tinyprune.bench.work import Gauge
from tinyprune.errors import UsageError


def torch_device(device: str) -> torch.device:
    """ "cpu" or "cuda", with products in float32 proper: TF32, which drops 13 of their 23 bits, stays off.

    Raises:
        UsageError: if this PyTorch cannot compute on a GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"PyTorch {torch.__version__} finds no GPU: install one that is built for CUDA")
    torch.set_float32_matmul_precision("highest")
    return torch.device(device)


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
