"""Compile the kernels of the GPU ladders, which needs no GPU, or time them on this machine's GPU.

    python -m tinyprune.kernels.ladder.cuda compile 8.0 9.0     PTX, registers, spills: for these compute capabilities
    python -m tinyprune.kernels.ladder.cuda time                milliseconds, on this machine's GPU

Both print JSON. They are separate processes, in which Numba's simulator is off, so that a notebook that simulates can
call them. Importing this module imports neither Numba nor anything of CUDA.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels.cuda.compiled import compile_kernel
from tinyprune.kernels.gpu import gpu_name, gpu_present, what_is_missing


def compile_all(capabilities: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Run `compile_kernel` for every kernel of both ladders.

    Raises:
        UsageError: if numba-cuda or nvJitLink is missing; says what to install.
    """
    missing = what_is_missing()
    if missing:
        raise UsageError(missing)
    from tinyprune.kernels.ladder import cuda_attention, cuda_matmul

    kernels = [(rung.kernel, cuda_matmul.SIGNATURE) for rung in cuda_matmul.RUNGS.values()]
    kernels += cuda_attention.KERNELS.values()
    return [compile_kernel(*kernel, capability) for capability in capabilities for kernel in kernels]


def milliseconds(launch: Callable[..., None], arrays: Sequence[Any], rounds: int) -> float:
    """Time `rounds` launches in a row and return the milliseconds of one, the best of three."""
    from numba import cuda

    launch(*arrays)  # compiles
    cuda.synchronize()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(rounds):
            launch(*arrays)
        cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best / rounds * 1e3


def time_all(size: int, rounds: int, H: int = 8) -> list[dict[str, Any]]:
    """Time all rungs with arrays in the GPU's memory, and measure their errors against NumPy in float64.

    Products are size × size; attention has H heads of 64 numbers, `size` queries and as many keys.
    """
    from numba import cuda

    from tinyprune import ops
    from tinyprune.kernels.ladder import cuda_attention, cuda_matmul

    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((2, size, size), np.float32)
    heads = rng.standard_normal((3, 1, size, H, 64), np.float32)
    attended = ops.attention_forward(*heads.astype(float), *5 * [None])[0]
    # A causal query sees half of the keys, and each costs Dh multiply-adds in q·k and Dh in a·v.
    ladders = [
        ("matmul", cuda_matmul.RUNGS, matrices, matrices[0].astype(float) @ matrices[1], size**3),
        ("attention", cuda_attention.RUNGS, heads, attended, size * (size + 1) // 2 * H * 2 * 64),
    ]
    records = []
    for ladder, rungs, inputs, expected, multiply_adds in ladders:
        on_device = [cuda.to_device(np.ascontiguousarray(x)) for x in inputs]
        on_device.append(cuda.to_device(np.zeros(expected.shape, np.float32)))
        for name, rung in rungs.items():
            ms = milliseconds(rung.launch, on_device, rounds)
            error = np.abs(on_device[-1].copy_to_host() - expected).max()
            record = {"ladder": ladder, "rung": name, "size": size, "milliseconds": ms}
            records.append(record | {"gflops": 2e-6 * multiply_adds / ms, "largest_error": float(error)})
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line above, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m tinyprune.kernels.ladder.cuda", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    compiling = commands.add_parser("compile", help="PTX, registers and spills of all kernels")
    compiling.add_argument("capability", nargs="+", help="compute capability of a GPU, such as 8.0")
    timing = commands.add_parser("time", help="milliseconds of all rungs on this machine's GPU")
    timing.add_argument("--size", type=int, default=1024, help="of matrices, and number of queries")
    timing.add_argument("--rounds", type=int, default=20, help="launches in a row")
    options = parser.parse_args(arguments)
    if options.command == "compile":
        records = compile_all([tuple(map(int, capability.split("."))) for capability in options.capability])
    else:
        if not gpu_present():
            raise UsageError("there is no NVIDIA GPU here (no driver, or it finds none)")
        if importlib.util.find_spec("numba_cuda") is None:
            raise UsageError(what_is_missing())
        device = {"device": gpu_name()}
        records = [device | record for record in time_all(options.size, options.rounds)]
    json.dump(records, sys.stdout, indent=1)


if __name__ == "__main__":
    try:
        main()
    except TinypruneError as error:
        sys.exit(f"error: {error}")
