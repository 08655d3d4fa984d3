"""`tinyprune bench`: the speed and memory of the compiled core, beside the libraries that one would use instead.

    attention   forward + backward                                            against PyTorch, plain and SDPA
    step        a whole training step                   against PyTorch, also compiled, also under bf16 autocast
    generate    one token at a time, keys and values kept      against PyTorch eager; of a GGUF file against llama.cpp
    breakdown   each operation of a training step             against the speed of sgemm and of memory
    roofline    each kernel of a training step on a GPU that is not here      against the fewest requests of memory

The first two also run on a GPU (`--backend cuda`). PyTorch then computes there, too: a run ends when the GPU has
finished, and both sides multiply in float32 (in tf32 with `--backend cuda-tf32`).

What makes the ratios fair:

- Each library has a separate process (`processes.py`), and these take turns: ours, peer, ours, peer … A pause after
  each turn lets its threads go to sleep. Within one process libraries disturb each other: Numba's OpenMP layer switches
  on nested parallelism in the libgomp that PyTorch shares, which makes PyTorch 10 to 100 times slower, and OpenBLAS's
  threads spin for a while after each product.
- Times are medians of many turns after a warm-up, so that they include no compilation. `spread_percent`, the median
  distance of a turn from the median turn, shows how much other programs disturbed the measurement.
- A ratio requires that both sides' results agree: same weights, same data, whole arrays. PyTorch under bf16 autocast,
  whose products have 8 significant bits, is held to a larger tolerance.
- NumPy as a peer runs without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE, should they be set: they can slow OpenBLAS down
  (on one machine to half of its speed), and we compare with BLAS at its best.
- All have the same number of threads. What a PyTorch user would choose among is shown: plain and SDPA, eager and
  compiled, float32 and bf16. Its AdamW is the fused one.

GFLOP are nominal, see `shapes.py`: they count what the formula says, whatever the implementation leaves out or repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command asks for names of benchmarks, and should answer at once
    from numpy.typing import NDArray

# name -> module of `tinyprune.bench.benchmarks` that has `run_NAME(options)`, which yields the records of one shape
# after the other. The module is imported only when that benchmark is asked for.
BENCHMARKS = dict.fromkeys(("attention", "step", "generate"), "speed") | {
    "breakdown": "breakdown",
    "roofline": "roofline",
}
# name -> module, package, what people call it
PEERS = {
    "torch": ("torch", "torch", "PyTorch"),
    "llama.cpp": ("llama_cpp_py_sync", "llama-cpp-py-sync", "llama.cpp"),
}
# A roofline's GPUs: multiprocessors, cycles and bytes a nanosecond (NVIDIA's data sheets).
GPUS = {
    "a100": (108, 1.41, 1555),
    "h100": (132, 1.98, 3350),
    "rtx3060": (28, 1.78, 360),
    "rtx4090": (128, 2.52, 1008),
}


@dataclass(frozen=True)
class Workload:
    """One contender's computation at one shape."""

    run: Callable[[], Any]  # what is timed; it returns when everything is computed, on a GPU too
    # on which all contenders must agree; called once, before `run`
    results: Callable[[], dict[str, NDArray]] = dict
