"""Reading one token at a time in llama.cpp, which `pip install llama-cpp-py-sync` brings."""

from __future__ import annotations

import llama_cpp_py_sync
import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload
from tinyprune.bench.shapes import TOKENS, file_text, reading


def decoder(path: str, threads: int, V: int) -> Workload:
    """Read tokens with the model of a GGUF file, of V words, and so many threads; see `shapes.reading`."""
    model = llama_cpp_py_sync.Llama(path, n_ctx=2 * TOKENS, n_threads=threads)
    read = 0

    def clear() -> None:
        nonlocal read
        read = 0
        model._clear_context_state()

    def step(token: int) -> NDArray:
        nonlocal read
        read = model._eval_tokens([token], read)
        row = model._lib.llama_get_logits_ith(model._ctx, -1)
        logits = np.frombuffer(model._ffi.buffer(row, 4 * V), np.float32)
        shifted = logits - logits.max()
        return shifted - np.log(np.exp(shifted).sum())

    return reading(clear, step, file_text())
