"""The operations of `tinyprune.ops` as kernels for NVIDIA GPUs, written in `numba.cuda`: one operation a file.

`jit` says how kernels are compiled and launched, `array` what an array in the GPU's memory is, `memory` where it lives.
"""

from tinyprune.kernels.cuda.add import add
from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.context import context_backward, context_forward
from tinyprune.kernels.cuda.dropout import dropout_backward, dropout_forward
from tinyprune.kernels.cuda.jit import COMPILING, compilations
from tinyprune.kernels.cuda.join import join
from tinyprune.kernels.cuda.layernorm import layernorm_backward, layernorm_forward
from tinyprune.kernels.cuda.positions import positions_backward, positions_forward
from tinyprune.kernels.cuda.residual import residual_backward, residual_forward
from tinyprune.kernels.cuda.slices import put_slices, take_slices
from tinyprune.kernels.cuda.top_k import top_k_backward, top_k_forward

__all__ = [
    "COMPILING",
    "add",
    "compilations",
    "context_backward",
    "context_forward",
    "dropout_backward",
    "dropout_forward",
    "join",
    "layernorm_backward",
    "layernorm_forward",
    "positions_backward",
    "positions_forward",
    "put_slices",
    "residual_backward",
    "residual_forward",
    "take_slices",
    "to_device",
    "to_host",
    "top_k_backward",
    "top_k_forward",
]
