"""Attention alone, forward + backward with gradients to all inputs, against PyTorch: plain, and SDPA with a mask."""

from __future__ import annotations

from typing import Any

from tinyprune.bench.benchmarks.matmul import tolerance
from tinyprune.bench.options import Options
from tinyprune.bench.race import OURS, Case, Contender, race
from tinyprune.bench.shapes import ATTENTION_SHAPES, attention_gflop, default_shapes, model_shape
from tinyprune.tables import Record

ROUNDS = 11
MODES = ("plain", "sdpa")


def contenders(options: Options, **shape: Any) -> tuple[Contender, ...]:
    """Us and the peers at one shape; see `shapes.model_shape`."""
    resolved = model_shape(**shape)
    gflop = attention_gflop(resolved.config, resolved.B)
    ours = Contender(
        options.subject, OURS, "tinyprune.bench.ours:attention", {"backend": options.backend} | shape, gflop
    )
    target = "tinyprune.bench.peers.torch_attention:attention"
    where = {"device": options.device} | shape
    modes = MODES if "torch" in options.peers else ()
    return ours, *(Contender(f"torch {mode}", "torch", target, {"mode": mode} | where, gflop) for mode in modes)


def run(options: Options) -> list[Record]:
    """`tinyprune bench attention`."""
    records = []
    for name in options.shapes or default_shapes(options.backend, ATTENTION_SHAPES):
        case = Case(name, contenders(options, name=name), tolerance(options, 1e-4))
        records += race("attention", [case], rounds=options.rounds or ROUNDS, threads=options.threads)
    return records
