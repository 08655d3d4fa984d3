"""Compile kernels for GPUs that are not here. A program: in it, Numba's simulator is off.

python compiling.py MODULE…     prints JSON: a record of each kernel of these modules for each compute capability
"""

import importlib
import json
import math
import sys

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.compiled import compile_kernel
from tinyprune.kernels.cuda.device.jit import KERNELS

CAPABILITIES = [(8, 0), (8, 6), (9, 0), (10, 0)]  # of an A100, an RTX 30, an H100, a B200


def describe(kernel, capability):
    """The compiler's record of a kernel, and what the kernel says of itself; or why it was refused."""
    try:
        record = compile_kernel(kernel.function, kernel.signature, capability)
    except TinypruneError as error:
        return {"kernel": kernel.__name__, "refused": str(error)}
    return record | {"threads": math.prod(kernel.block), "hot": kernel.hot, "float64": kernel.float64}


if __name__ == "__main__":
    modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    json.dump([describe(k, c) for k in KERNELS if k.function.__module__ in modules for c in CAPABILITIES], sys.stdout)
