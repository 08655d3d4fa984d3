"""Attention, step and generate: how fast our side is, how fast its peers, and what a step occupies.

`attention` is attention alone, forward + backward with gradients to all inputs, against PyTorch: plain, and SDPA with a
mask.

`step` is a whole training step, against PyTorch: plain, SDPA, both under torch.compile, and all four under bf16
autocast where the processor has instructions for it. Autocast rounds what products and attention read to 8 significant
bits, which is less work than ours; losses then agree to 2 parts in 1,000. `sgemm_share` is the speed by nominal
operations over that of NumPy's BLAS at 1024×1024×1024, which takes its turns in the same run. A step's memory is
measured afterwards, see `race.with_memory`; that of compiled code is not, since it would include the compiler's. On a
GPU there are neither.

`generate` reads a text one token at a time with cached keys and values, as generation does, and computes log p of what
comes next, but draws nothing: the presets against PyTorch eager with one thread and with all, a GGUF file or the
package of one against llama.cpp. The yardstick reads as many bytes once as the weights, keys and values of a token
have. `median_ms` is for a token. llama.cpp rounds the factors of products to 8 bits, so that log p then agrees to a few
parts in 100 only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyprune.bench.command import Options
from tinyprune.bench.processes import OURS, Contender
from tinyprune.bench.race import race, with_memory
from tinyprune.bench.shapes import (
    ATTENTION_SHAPES,
    STEP_SHAPES,
    TOKENS,
    attention_gflop,
    gguf_file,
    model_shape,
    step_gflop,
)
from tinyprune.io.progress import say
from tinyprune.io.tables import Record
from tinyprune.kernels.backend import BACKENDS
from tinyprune.kernels.machine import has_bf16
from tinyprune.model.counting import count_multiply_adds
from tinyprune.pretrained import read_pretrained

BYTES = "its bytes, read once"  # the yardstick of generation
LARGE = 1024  # rows and columns of the yardstick
ATTENTION_TOLERANCE, STEP_TOLERANCE = 1e-4, 1e-5
GENERATE_TOLERANCE, LLAMA_CPP_TOLERANCE = 1e-4, 5e-2
BF16_TOLERANCE = 2e-3  # of losses under bf16 autocast
# of products whose factors are rounded to 10 bits after the point, by each side in its own way
TF32_TOLERANCE = 5e-3


def tolerance(options: Options, usual: float) -> float:
    """Return the tolerance of a comparison: larger than usual where products are rounded to tf32."""
    return TF32_TOLERANCE if BACKENDS[options.backend].precision == "tf32" else usual


def attention_contenders(options: Options, name: str) -> list[Contender]:
    """Return our attention and the peers' at one shape."""
    shape = model_shape(name)
    gflop, allowed = attention_gflop(shape.config, shape.B), tolerance(options, ATTENTION_TOLERANCE)
    target = "tinyprune.bench.backend_workloads:attention"
    arguments = {"backend": options.backend, "name": name}
    contenders = [Contender(options.subject, OURS, target, arguments, gflop, allowed)]
    for mode in options.modes:
        target = "tinyprune.bench.torch_operations:attention"
        arguments = {"mode": mode, "device": options.device, "name": name}
        contenders.append(Contender(f"torch {mode}", "torch", target, arguments, gflop, allowed))
    return contenders


def run_attention(options: Options) -> Iterator[list[Record]]:
    """`tinyprune bench attention`."""
    for name in options.shapes or ATTENTION_SHAPES:
        contenders = attention_contenders(options, name)
        yield race("attention", name, contenders, options.rounds, options.threads)


def our_steps(options: Options, name: str) -> list[Contender]:
    """Return our step: with all heads, and with half of them closed or removed, which computes another model."""
    target, whole = "tinyprune.bench.backend_workloads:training_step", model_shape(name)
    half = model_shape(name, heads=(whole.config.H + 1) // 2)

    def step(shape: Any, subject: str, allowed: float | None, **more: str) -> Contender:
        arguments = {"backend": options.backend, "name": name} | more
        return Contender(subject, OURS, target, arguments, step_gflop(shape.config, shape.B), allowed)

    contenders = [step(whole, options.subject, tolerance(options, STEP_TOLERANCE))]
    for heads in ("closed", "removed"):
        contenders.append(step(half, f"{options.subject}, half of the heads {heads}", None, half=heads))
    if options.backend == "numba":
        contenders.append(step(whole, f"{options.subject}, bf16", BF16_TOLERANCE, precision="bf16"))
    return contenders


def torch_steps(options: Options, name: str, bf16: bool) -> list[Contender]:
    """Return what a PyTorch user would try: both ways to write attention, eager and compiled.

    With `bf16` all of these also under autocast. Compiled ones are left out where there is no compiler.
    """
    shape, contenders = model_shape(name), []
    gflop, allowed = step_gflop(shape.config, shape.B), tolerance(options, STEP_TOLERANCE)
    target = "tinyprune.bench.torch_model:training_step"
    ways = [("torch {}", False, False, allowed), ("torch.compile ({})", True, False, allowed)]
    if bf16:
        ways += [(f"{subject}, bf16 autocast", compiled, True, BF16_TOLERANCE) for subject, compiled, *_ in ways]
    for (subject, compiled, autocast, allowed), mode in itertools.product(ways, options.modes):
        arguments = {"mode": mode, "compiled": compiled, "bf16": autocast, "device": options.device, "name": name}
        contenders.append(Contender(subject.format(mode), "torch", target, arguments, gflop, allowed, compiled))
    return contenders


def with_bf16(options: Options) -> bool:
    """Return whether PyTorch under bf16 autocast is a peer; say so if the processor has no instructions for it."""
    asked = "torch" in options.peers and not options.on_device
    if asked and not has_bf16():
        say("PyTorch under bf16 autocast is left out: this processor has no bf16 products (avx512_bf16, amx_bf16)")
    return asked and has_bf16()


def sgemm() -> Contender:
    """Return the yardstick: NumPy with BLAS at its best, see `processes.environment`."""
    target = "tinyprune.bench.backend_workloads:blas"
    return Contender("NumPy's sgemm", "numpy", target, {"n": LARGE}, 2 * LARGE**3 / 1e9, None)


def with_share(rows: list[Record]) -> list[Record]:
    """Return the records with `sgemm_share`; the yardstick, the last, has no ratio, since it does other work."""
    yardstick = rows[-1]["gflops"]
    rows = [row | {"sgemm_share": row["gflops"] / yardstick} for row in rows]
    return [*rows[:-1], rows[-1] | {"ratio_to_subject": None}]


def run_step(options: Options) -> Iterator[list[Record]]:
    """`tinyprune bench step`."""
    bf16 = with_bf16(options)
    for name in options.shapes or STEP_SHAPES:
        steps = our_steps(options, name) + torch_steps(options, name, bf16)
        if options.on_device:
            yield race("step", name, steps, options.rounds, options.threads)
            continue
        rows = with_share(race("step", name, [*steps, sgemm()], options.rounds, options.threads))
        if rows[0]["rounds"] < options.rounds:  # Ctrl-C ended the race
            yield rows
            continue
        try:
            found = with_memory(rows, [c for c in steps if not c.optional], options.threads)
        except KeyboardInterrupt:
            yield rows
            raise
        yield found


def preset_decoders(options: Options, name: str) -> list[Contender]:
    """Return our decoder of a preset, PyTorch's with one thread and with all, and the yardstick."""
    per_token = count_multiply_adds(model_shape(name).config)
    gflop, target = 2 * TOKENS * per_token / 1e9, "tinyprune.bench.backend_workloads:decoder"
    arguments: dict[str, Any] = {"backend": options.backend, "name": name}
    found = [Contender(options.subject, OURS, target, arguments, gflop, GENERATE_TOLERANCE)]
    for threads in sorted({1, options.threads}) if "torch" in options.peers else ():
        subject = f"torch eager, {threads} thread{'s' * (threads > 1)}"
        target = "tinyprune.bench.torch_decoder:decoder"
        arguments = {"name": name, "threads": threads}
        found.append(Contender(subject, "torch", target, arguments, gflop, GENERATE_TOLERANCE))
    # a multiply-add reads one float32 number
    return [*found, bytes_of_a_token(options, 4 * per_token)]


def file_decoders(options: Options, path: Path) -> list[Contender]:
    """Return our decoder of a GGUF file, llama.cpp's, and the yardstick."""
    config, compared = read_pretrained(path).config, "llama.cpp" in options.peers
    gflop = 2 * TOKENS * count_multiply_adds(config) / 1e9
    allowed = LLAMA_CPP_TOLERANCE if compared else None
    target = "tinyprune.bench.backend_workloads:file_decoder"
    arguments = {"backend": options.backend}
    found = [Contender(options.subject, OURS, target, arguments | {"path": str(path)}, gflop, allowed)]
    if compared:
        target = "tinyprune.bench.llama_cpp:decoder"
        given = {"threads": options.threads, "V": config.V}
        found.append(Contender("llama.cpp", "llama.cpp", target, given | {"path": str(path)}, gflop, allowed))
    return [*found, bytes_of_a_token(options, path.stat().st_size)]


def bytes_of_a_token(options: Options, size: int) -> Contender:
    """Return the yardstick of generation: memory that is read."""
    target = "tinyprune.bench.backend_workloads:reading_memory"
    return Contender(BYTES, OURS, target, {"backend": options.backend, "size": size}, 0.0, None)


def run_generate(options: Options) -> Iterator[list[Record]]:
    """`tinyprune bench generate`; `median_ms` is for one token."""
    for name in options.shapes or ("tiny", "small"):
        path = gguf_file(name)
        contenders = file_decoders(options, path) if path else preset_decoders(options, name)
        rows = race("generate", name, contenders, options.rounds, options.threads)
        per_token = [row if row["subject"] == BYTES else row | {"median_ms": row["median_ms"] / TOKENS} for row in rows]
        ours = per_token[0]["median_ms"]
        per_token = [row | {"ratio_to_subject": row["median_ms"] / ours} for row in per_token]
        yield [row | {"tokens_per_second": 1e3 / row["median_ms"]} for row in per_token]
