"""Attention and step: how fast our side is, how fast its peers, and what a step occupies.

`attention` is attention alone, forward + backward with gradients to all inputs, against PyTorch: plain, and SDPA with a
mask.

`step` is a whole training step, against PyTorch: plain, SDPA, both under torch.compile, and all four under bf16
autocast where the processor has instructions for it. Autocast rounds what products and attention read to 8 significant
bits, which is less work than ours; losses then agree to 2 parts in 1,000. `sgemm_share` is the speed by nominal
operations over that of NumPy's BLAS at 1024×1024×1024, which takes its turns in the same run. On a GPU the yardstick is
cuBLAS at 4096×4096×4096, if PyTorch is a peer: smaller products do not fill a GPU. A step's memory is measured
afterwards, see `race.with_memory`; that of compiled code is not, since it would include the compiler's.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from tinyprune.bench.command import Options
from tinyprune.bench.processes import OURS, Contender
from tinyprune.bench.race import Case, race, with_memory
from tinyprune.bench.shapes import (
    ATTENTION_SHAPES,
    STEP_SHAPES,
    attention_gflop,
    default_shapes,
    model_shape,
    step_gflop,
)
from tinyprune.io.progress import say
from tinyprune.io.tables import Record
from tinyprune.kernels.backend import BACKENDS
from tinyprune.kernels.machine import has_bf16

ATTENTION_ROUNDS, STEP_ROUNDS = 11, 9
LARGE, LARGE_FOR_CUDA = 1024, 4096  # rows and columns of the yardstick
SGEMM, CUBLAS = "NumPy's sgemm", "cuBLAS"
BF16_TOLERANCE = 2e-3  # of losses under bf16 autocast
TF32_TOLERANCE = 5e-3  # of products whose factors are rounded to 10 bits after the point, by each side in its own way


def our_contender(options: Options, workload: str, gflop: float, **arguments: Any) -> Contender:
    """Return our side: a function of `backend_workloads`."""
    target = f"tinyprune.bench.backend_workloads:{workload}"
    return Contender(options.subject, OURS, target, {"backend": options.backend} | arguments, gflop)


def tolerance(options: Options, usual: float) -> float:
    """Return the tolerance of a `Case`: larger than usual where products are rounded to tf32."""
    return TF32_TOLERANCE if BACKENDS[options.backend].precision == "tf32" else usual


def attention_contenders(options: Options, **shape: Any) -> tuple[Contender, ...]:
    """Return our attention and the peers' at one shape; see `shapes.model_shape`."""
    measured = model_shape(**shape)
    gflop = attention_gflop(measured.config, measured.B)
    ours = our_contender(options, "attention", gflop, **shape)
    target, where = "tinyprune.bench.torch_operations:attention", {"device": options.device} | shape
    peers = (Contender(f"torch {mode}", "torch", target, {"mode": mode} | where, gflop) for mode in options.modes)
    return ours, *peers


def run_attention(options: Options) -> list[Record]:
    """`tinyprune bench attention`."""
    records = []
    for name in options.shapes or default_shapes(options.backend, ATTENTION_SHAPES):
        case = Case(name, attention_contenders(options, name=name), tolerance(options, 1e-4))
        records += race("attention", [case], rounds=options.rounds or ATTENTION_ROUNDS, threads=options.threads)
    return records


def our_step(options: Options, half: str | None = None, **shape: Any) -> Contender:
    """Return our step; with `half` of the heads "closed" or "removed"."""
    measured = model_shape(**shape)
    if half is None:
        gflop = step_gflop(measured.config, measured.B)
        return our_contender(options, "training_step", gflop, half=None, **shape)
    left = model_shape(**shape, heads=(measured.config.H + 1) // 2)
    ours = our_contender(options, "training_step", step_gflop(left.config, left.B), half=half, **shape)
    return replace(ours, subject=f"{options.subject}, half of the heads {half}", compared=False)


def torch_step(mode: str, compiled: bool = False, bf16: bool = False, device: str = "cpu", **shape: Any) -> Contender:
    """Return PyTorch's step; it is left out if it cannot be compiled here."""
    measured = model_shape(**shape)
    arguments = {"mode": mode, "compiled": compiled, "bf16": bf16, "device": device} | shape
    gflop = step_gflop(measured.config, measured.B)
    subject = (f"torch.compile ({mode})" if compiled else f"torch {mode}") + ", bf16 autocast" * bf16
    target, tolerance = "tinyprune.bench.torch_model:training_step", BF16_TOLERANCE if bf16 else None
    return Contender(subject, "torch", target, arguments, gflop, tolerance=tolerance, optional=compiled)


def with_bf16(options: Options) -> bool:
    """Return whether PyTorch under bf16 autocast is a peer; say so if the processor has no instructions for it."""
    asked = "torch" in options.peers and not options.on_device
    if asked and not has_bf16():
        say("PyTorch under bf16 autocast is left out: this processor has no bf16 products (avx512_bf16, amx_bf16)")
    return asked and has_bf16()


def torch_steps(options: Options, name: str, bf16: bool) -> tuple[Contender, ...]:
    """Return what a PyTorch user would try: both ways to write attention, eager and compiled.

    With `bf16` all of these also under autocast.
    """
    ways = itertools.product((False, True)[: 1 + bf16], (False, True), options.modes)
    return tuple(torch_step(mode, compiled, under, options.device, name=name) for under, compiled, mode in ways)


def sgemm(options: Options) -> tuple[Contender, ...]:
    """Return the yardstick: NumPy with BLAS at its best, see `processes.environment`; on a GPU PyTorch, if a peer."""
    if not options.on_device:
        gflop, target = 2 * LARGE**3 / 1e9, "tinyprune.bench.backend_workloads:blas"
        return (Contender(SGEMM, "numpy", target, {"n": LARGE}, gflop, False),)
    arguments = {"n": LARGE_FOR_CUDA, "device": options.device}
    target = "tinyprune.bench.torch_operations:matmul"
    cublas = Contender(CUBLAS, "torch", target, arguments, 2 * LARGE_FOR_CUDA**3 / 1e9, False)
    return (cublas,) if "torch" in options.peers else ()


def with_share(records: list[Record]) -> list[Record]:
    """Return the records with `sgemm_share`; the yardstick itself has no ratio, since it does other work."""
    yardstick = next((r for r in records if r["subject"] in (SGEMM, CUBLAS)), None)
    if yardstick is None:
        return [r | {"sgemm_share": None} for r in records]
    rows = [r | {"sgemm_share": r["gflops"] / yardstick["gflops"]} for r in records]
    return [r | ({"ratio_to_subject": None} if yardstick["subject"] == r["subject"] else {}) for r in rows]


def run_step(options: Options) -> list[Record]:
    """`tinyprune bench step`."""
    records, bf16 = [], with_bf16(options)
    for name in options.shapes or default_shapes(options.backend, STEP_SHAPES):
        ours = [our_step(options, half, name=name) for half in (None, "closed", "removed")]
        steps = (*ours, *torch_steps(options, name, bf16))
        case = Case(name, (*steps, *sgemm(options)), tolerance(options, 1e-5))
        rows = race("step", [case], rounds=options.rounds or STEP_ROUNDS, threads=options.threads)
        rows = with_memory(rows, [c for c in steps if not c.optional], {"B": 1}, options.threads)
        records += with_share(rows)
    return records
