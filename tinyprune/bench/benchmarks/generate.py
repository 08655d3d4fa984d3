"""Reading a text one token at a time, keys and values kept, against PyTorch eager with one thread or all of them."""

from __future__ import annotations

from tinyprune.bench.benchmarks.matmul import tolerance
from tinyprune.bench.options import Options
from tinyprune.bench.race import OURS, Case, Contender, fastest, race
from tinyprune.bench.shapes import PRESETS, default_shapes, model_shape
from tinyprune.model.counting import count_multiply_adds
from tinyprune.tables import Record

ROUNDS = 15
TOKENS = 32  # in a turn


def torch_decoder(threads: int, gflop: float, name: str, device: str = "cpu") -> Contender:
    """PyTorch's."""
    subject = f"torch eager, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else "torch eager"
    arguments = {"n": TOKENS, "threads": threads, "device": device, "name": name}
    return Contender(subject, "torch", "tinyprune.bench.peers.torch_decoder:decoder", arguments, gflop)


def generate_case(options: Options, name: str) -> Case:
    """Us and the faster of PyTorch's two; on a GPU its threads do not matter."""
    gflop = 2 * count_multiply_adds(model_shape(name).config) / 1e9
    arguments = {"backend": options.backend, "n": TOKENS, "name": name}
    contenders = [Contender(options.subject, OURS, "tinyprune.bench.ours:decoder", arguments, gflop)]
    if "torch" in options.peers:
        counts = sorted({1, options.threads}) if options.device == "cpu" else [1]
        ways = [torch_decoder(threads, gflop, name, options.device) for threads in counts]
        contenders.append(fastest(Case(name, tuple(ways)), threads=options.threads) if len(ways) > 1 else ways[0])
    return Case(name, tuple(contenders), tolerance(options, 1e-4))


def run(options: Options) -> list[Record]:
    """`tinyprune bench generate`; `median_ms` is for one token."""
    records = []
    for name in options.shapes or default_shapes(options.backend, PRESETS):
        case = generate_case(options, name)
        records += race("generate", [case], rounds=options.rounds or ROUNDS, threads=options.threads)
    return [r | {"tokens_per_second": 1e3 / r["median_ms"]} for r in records]
