"""PyTorch's matrix product on the GPU, which is that of NVIDIA's cuBLAS."""

from __future__ import annotations

import torch

from tinyprune.bench.inputs import matrices
from tinyprune.bench.peers.device import torch_device, wait_for
from tinyprune.bench.work import IN_A_ROW, Work


def matmul(m: int, k: int, n: int, layout: str, device: str = "cuda") -> Work:
    """One product; see `tinyprune.bench.inputs.matrices`, and for `device` `torch_device`."""
    device = torch_device(device)
    a, b = (torch.from_numpy(x).to(device) for x in matrices(m, k, n, layout))
    a, b = (a.T if layout == "Aᵀ·B" else a), (b.T if layout == "A·Bᵀ" else b)
    out = torch.empty(m, n, device=device)

    def run() -> None:
        for _ in range(IN_A_ROW):
            torch.matmul(a, b, out=out)
        wait_for(device)

    return Work(run, lambda: {"out": (a @ b).cpu().numpy()}, units=IN_A_ROW)
