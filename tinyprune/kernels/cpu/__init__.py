"""The operations of `tinyprune.ops`, compiled by Numba for the CPU: one operation a file, as there.

`jit` says how kernels are compiled, `simd` which vector instructions they are written in, `workspace` where their
results live.

Several Python threads may call them at the same time where Numba's threading layer is OpenMP or TBB; its last resort,
workqueue, ends the process then.
"""

from tinyprune.kernels.cpu.adamw import adamw_update, adamw_updates
from tinyprune.kernels.cpu.adaptive_embedding import adaptive_embedding_backward, adaptive_embedding_forward
from tinyprune.kernels.cpu.adaptive_softmax import (
    adaptive_log_probabilities,
    adaptive_softmax_backward,
    adaptive_softmax_forward,
)
from tinyprune.kernels.cpu.add import add
from tinyprune.kernels.cpu.attention import attention_backward, attention_forward
from tinyprune.kernels.cpu.attention_step import AttentionStep, attention_step
from tinyprune.kernels.cpu.context import context_forward
from tinyprune.kernels.cpu.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from tinyprune.kernels.cpu.dropout import dropout_backward, dropout_forward
from tinyprune.kernels.cpu.embedding import embedding_backward, embedding_forward
from tinyprune.kernels.cpu.feedforward import feedforward_backward, feedforward_forward
from tinyprune.kernels.cpu.jit import COMPILING, compilations, forget_outdated
from tinyprune.kernels.cpu.lamb import lamb_update
from tinyprune.kernels.cpu.layernorm import layernorm_backward, layernorm_forward
from tinyprune.kernels.cpu.layerwise_error import layerwise_error_backward, layerwise_error_forward
from tinyprune.kernels.cpu.linear import linear_backward, linear_forward
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.kernels.cpu.norm import squared_norm, squared_norms
from tinyprune.kernels.cpu.projections import projections_backward, projections_forward
from tinyprune.kernels.cpu.residual import residual_backward, residual_forward
from tinyprune.kernels.cpu.sgd import sgd_update
from tinyprune.kernels.cpu.slices import put_slices, take_slices

__all__ = [
    "COMPILING",
    "AttentionStep",
    "adamw_update",
    "adamw_updates",
    "adaptive_embedding_backward",
    "adaptive_embedding_forward",
    "adaptive_log_probabilities",
    "adaptive_softmax_backward",
    "adaptive_softmax_forward",
    "add",
    "attention_backward",
    "attention_forward",
    "attention_step",
    "compilations",
    "context_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "feedforward_backward",
    "feedforward_forward",
    "lamb_update",
    "layernorm_backward",
    "layernorm_forward",
    "layerwise_error_backward",
    "layerwise_error_forward",
    "linear_backward",
    "linear_forward",
    "log_softmax",
    "matmul",
    "projections_backward",
    "projections_forward",
    "put_slices",
    "residual_backward",
    "residual_forward",
    "sgd_update",
    "squared_norm",
    "squared_norms",
    "take_slices",
]

forget_outdated()
