"""The textbook: every operation of the model in NumPy, forward beside backward, one operation a file.

`out, cache = x_forward(…)` and `dx, … = x_backward(dout, cache)`: gradients in argument order, shapes and dtypes of the
arguments; `dout` and `cache` are never modified. Everything works in float32 (training), float64 (checking) and
complex128 (checking to the last digit, see `tinyprune.gradcheck`).

Operations without a gradient of their own: `add`, `join`, `squared_norm`, `squared_norms` and `clipping`, `take_slices`
and `put_slices`, the optimizers' updates, which work in place, and `attention_step`, for writing text.
"""

from tinyprune.ops.adamw import adamw_updates
from tinyprune.ops.adaptive_embedding import adaptive_embedding_backward, adaptive_embedding_forward
from tinyprune.ops.adaptive_softmax import (
    adaptive_log_probabilities,
    adaptive_softmax_backward,
    adaptive_softmax_forward,
)
from tinyprune.ops.add import add
from tinyprune.ops.attention import attention_backward, attention_forward
from tinyprune.ops.attention_step import AttentionStep, attention_step
from tinyprune.ops.clipping import clipping
from tinyprune.ops.context import context_backward, context_forward
from tinyprune.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax
from tinyprune.ops.distillation import distillation_backward, distillation_forward
from tinyprune.ops.dropout import dropout_backward, dropout_forward
from tinyprune.ops.embedding import embedding_backward, embedding_forward
from tinyprune.ops.feedforward import feedforward_backward, feedforward_forward
from tinyprune.ops.gelu import gelu_backward, gelu_forward
from tinyprune.ops.hard_concrete import draw_noise, hard_concrete_backward, hard_concrete_forward, sigmoid
from tinyprune.ops.head_difference import head_difference
from tinyprune.ops.head_networks import head_networks_backward, head_networks_forward
from tinyprune.ops.join import join
from tinyprune.ops.l0 import l0_backward, l0_forward, p_open
from tinyprune.ops.lamb import lamb_update
from tinyprune.ops.layernorm import layernorm_backward, layernorm_forward
from tinyprune.ops.layerwise_error import layerwise_error_backward, layerwise_error_forward
from tinyprune.ops.linear import linear_backward, linear_forward
from tinyprune.ops.norm import squared_norm, squared_norms
from tinyprune.ops.positions import positions_backward, positions_forward
from tinyprune.ops.projections import projections_backward, projections_forward
from tinyprune.ops.repeat_heads import repeat_heads_backward, repeat_heads_forward
from tinyprune.ops.residual import residual_backward, residual_forward
from tinyprune.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward
from tinyprune.ops.rotary import rotary_backward, rotary_forward
from tinyprune.ops.slices import put_slices, take_slices
from tinyprune.ops.swiglu import swiglu_backward, swiglu_forward
from tinyprune.ops.top_k import draw_gumbel, top_k_backward, top_k_forward

__all__ = [
    "AttentionStep",
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
    "clipping",
    "context_backward",
    "context_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "distillation_backward",
    "distillation_forward",
    "draw_gumbel",
    "draw_noise",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "feedforward_backward",
    "feedforward_forward",
    "gelu_backward",
    "gelu_forward",
    "hard_concrete_backward",
    "hard_concrete_forward",
    "head_difference",
    "head_networks_backward",
    "head_networks_forward",
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
    "p_open",
    "positions_backward",
    "positions_forward",
    "projections_backward",
    "projections_forward",
    "put_slices",
    "repeat_heads_backward",
    "repeat_heads_forward",
    "residual_backward",
    "residual_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rotary_backward",
    "rotary_forward",
    "sigmoid",
    "squared_norm",
    "squared_norms",
    "swiglu_backward",
    "swiglu_forward",
    "take_slices",
    "top_k_backward",
    "top_k_forward",
]
