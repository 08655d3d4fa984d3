"""The operations of `tinyprune.ops` as kernels for NVIDIA GPUs, written in `numba.cuda`: one operation a file.

`jit` says how kernels are compiled and launched, `array` what an array in the GPU's memory is, `memory` where it lives.
"""

from tinyprune.kernels.cuda.adamw import adamw_update, adamw_updates
from tinyprune.kernels.cuda.adaptive_embedding import adaptive_embedding_backward, adaptive_embedding_forward
from tinyprune.kernels.cuda.adaptive_softmax import (
    adaptive_log_probabilities,
    adaptive_softmax_backward,
    adaptive_softmax_forward,
)
from tinyprune.kernels.cuda.add import add
from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.attention import attention_backward, attention_forward
from tinyprune.kernels.cuda.attention_step import AttentionStep, attention_step
from tinyprune.kernels.cuda.context import context_backward, context_forward
from tinyprune.kernels.cuda.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from tinyprune.kernels.cuda.dropout import dropout_backward, dropout_forward
from tinyprune.kernels.cuda.embedding import embedding_backward, embedding_forward
from tinyprune.kernels.cuda.feedforward import feedforward_backward, feedforward_forward
from tinyprune.kernels.cuda.hard_concrete import hard_concrete_backward, hard_concrete_forward
from tinyprune.kernels.cuda.head_difference import head_difference
from tinyprune.kernels.cuda.jit import COMPILING, compilations
from tinyprune.kernels.cuda.join import join
from tinyprune.kernels.cuda.l0 import l0_backward, l0_forward
from tinyprune.kernels.cuda.lamb import lamb_update
from tinyprune.kernels.cuda.layernorm import layernorm_backward, layernorm_forward
from tinyprune.kernels.cuda.layerwise_error import layerwise_error_backward, layerwise_error_forward
from tinyprune.kernels.cuda.linear import linear_backward, linear_forward
from tinyprune.kernels.cuda.norm import squared_norm, squared_norms
from tinyprune.kernels.cuda.positions import positions_backward, positions_forward
from tinyprune.kernels.cuda.projections import projections_backward, projections_forward
from tinyprune.kernels.cuda.residual import residual_backward, residual_forward
from tinyprune.kernels.cuda.sgd import sgd_update
from tinyprune.kernels.cuda.slices import put_slices, take_slices
from tinyprune.kernels.cuda.top_k import top_k_backward, top_k_forward

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
    "context_backward",
    "context_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "feedforward_backward",
    "feedforward_forward",
    "hard_concrete_backward",
    "hard_concrete_forward",
    "head_difference",
    "join",
    "l0_backward",
    "l0_forward",
    "lamb_update",
    "layernorm_backward",
    "layernorm_forward",
    "layerwise_error_backward",
    "layerwise_error_forward",
    "linear_backward",
    "linear_forward",
    "log_softmax",
    "positions_backward",
    "positions_forward",
    "projections_backward",
    "projections_forward",
    "put_slices",
    "residual_backward",
    "residual_forward",
    "sgd_update",
    "squared_norm",
    "squared_norms",
    "take_slices",
    "to_device",
    "to_host",
    "top_k_backward",
    "top_k_forward",
]
