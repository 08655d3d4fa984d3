"""A whole training step, against PyTorch: plain, SDPA, and both under torch.compile.

`sgemm_share` is the speed by nominal operations over that of NumPy's BLAS at 1024×1024×1024, which takes its turns in
the same run (and a second time with the environment's own settings, should these hold BLAS back). On a GPU the
yardstick is cuBLAS at 4096×4096×4096, if PyTorch is a peer: smaller products do not fill one. The memory of a step
is measured afterwards, see `tinyprune.bench.footprint`; that of compiled code is not, since the compiler's own would be
counted with it.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tinyprune.bench.benchmarks.attention import MODES
from tinyprune.bench.benchmarks.matmul import CUBLAS, LARGE, blas, cublas, tolerance
from tinyprune.bench.footprint import with_memory
from tinyprune.bench.options import Options
from tinyprune.bench.race import OURS, Case, Contender, fastest, race
from tinyprune.bench.shapes import STEP_SHAPES, default_shapes, model_shape, step_gflop
from tinyprune.bench.workers import HOLD_BLAS_BACK
from tinyprune.tables import Record

ROUNDS = 9
OUR_STEP = "tinyprune.bench.ours:training_step"
TORCH_STEP = "tinyprune.bench.peers.torch_model:training_step"
SGEMM = "NumPy's sgemm"
LARGE_FOR_CUDA = (4096, 4096, 4096)


def our_step(options: Options, half: str | None = None, **shape: Any) -> Contender:
    """Our step; with `half` of the heads "closed" or "removed"."""
    resolved = model_shape(**shape)
    arguments = {"backend": options.backend, "half": half} | shape
    if half is None:
        return Contender(options.subject, OURS, OUR_STEP, arguments, step_gflop(resolved.config, resolved.B))
    left = model_shape(**shape, heads=(resolved.config.H + 1) // 2)
    gflop = step_gflop(left.config, left.B)
    return Contender(f"{options.subject}, half of the heads {half}", OURS, OUR_STEP, arguments, gflop, compared=False)


def torch_step(
    mode: str, optimizer: str = "fused", compiled: bool = False, device: str = "cpu", **shape: Any
) -> Contender:
    """PyTorch's."""
    resolved = model_shape(**shape)
    arguments = {"mode": mode, "optimizer": optimizer, "compiled": compiled, "device": device} | shape
    gflop = step_gflop(resolved.config, resolved.B)
    subject = f"torch.compile ({mode})" if compiled else f"torch {mode}"
    return Contender(subject, "torch", TORCH_STEP, arguments, gflop, optional=compiled)


def torch_steps(options: Options, name: str) -> tuple[Contender, ...]:
    """What a PyTorch user would try: both ways to write attention, eager and compiled, with the better optimizer."""
    if "torch" not in options.peers:
        return ()
    where = {"device": options.device, "name": name}
    ways = [torch_step("sdpa", optimizer, **where) for optimizer in ("fused", "foreach")]
    ways = tuple(dataclasses.replace(way, subject=way.arguments["optimizer"]) for way in ways)
    optimizer = fastest(Case(name, ways), threads=options.threads).arguments["optimizer"]
    return tuple(torch_step(mode, optimizer, compiled, **where) for compiled in (False, True) for mode in MODES)


def sgemm(options: Options) -> tuple[Contender, ...]:
    """The yardstick; also as the environment has it, if that is not BLAS at its best."""
    if options.device != "cpu":
        return cublas((*LARGE_FOR_CUDA, "A·B"), options, compared=False)
    best = blas((*LARGE, "A·B"), subject=SGEMM, compared=False)
    if not any(name in os.environ for name in HOLD_BLAS_BACK):
        return (best,)
    return best, blas((*LARGE, "A·B"), "numpy as set", f"{SGEMM}, environment as it is", compared=False)


def step_case(options: Options, name: str) -> Case:
    """All contenders at the model called `name`."""
    ours = [our_step(options, half, name=name) for half in (None, "closed", "removed")]
    contenders = (*ours, *torch_steps(options, name), *sgemm(options))
    return Case(name, contenders, tolerance(options, 1e-5))


def with_share(records: list[Record]) -> list[Record]:
    """The records with `sgemm_share`; the yardsticks themselves have no ratio, since they do other work."""
    yardstick = next((r for r in records if r["subject"] in (SGEMM, CUBLAS)), None)
    if yardstick is None:
        return [r | {"sgemm_share": None} for r in records]
    # Alone or in company, whichever was faster: a yardstick that was disturbed would flatter us.
    best = yardstick["gflops"] * max(1.0, yardstick["median_ms"] / yardstick["alone_ms"])
    rows = [r | {"sgemm_share": r["gflops"] / best} for r in records]
    return [r | ({"ratio_to_subject": None} if yardstick["subject"] in r["subject"] else {}) for r in rows]


def run(options: Options) -> list[Record]:
    """`tinyprune bench step`."""
    records = []
    for name in options.shapes or default_shapes(options.backend, STEP_SHAPES):
        case = step_case(options, name)
        rows = race("step", [case], rounds=options.rounds or ROUNDS, threads=options.threads)
        measured = [c for c in case.contenders if c.target in (OUR_STEP, TORCH_STEP) and not c.optional]
        records += with_share(with_memory(rows, measured, {"B": 1}, options.threads))
    return records
