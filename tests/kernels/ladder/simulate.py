"""The GPU ladders in Numba's simulator. A process of its own, as that is chosen when Numba is imported.

NUMBA_ENABLE_CUDASIM=1 python simulate.py NAME     runs the function NAME below, and prints what it returns as JSON
"""

import inspect
import json
import sys
import warnings
from dataclasses import replace

import numpy as np

from tinyprune import ops
from tinyprune.kernels.ladder import cuda, cuda_attention, cuda_matmul

RNG = np.random.default_rng(2110)


def matrices(M, K, N):
    return RNG.standard_normal((M, K), np.float32), RNG.standard_normal((K, N), np.float32)


def error(rung, a, b):
    """The largest difference from NumPy's product in float64."""
    out = rung(a, b)
    assert out.dtype == np.float32
    return float(np.abs(out - a.astype(float) @ b.astype(float)).max(initial=0))


def matmul():
    """Error by rung and shape. In the larger one there are four blocks, two tiles along k, and no edge that fits."""
    errors = {}
    for name, rung in cuda_matmul.RUNGS.items():
        large = (rung.x + 2, 19, rung.y + 3) if rung.x_is_row else (rung.y + 2, 19, rung.x + 3)
        assert np.prod(rung.grid(large[0], large[2])) == 4 and np.prod(rung.block) == 256
        for shape in ((1, 1, 1), large, (0, 3, 4), (3, 0, 4), (3, 4, 0)):
            errors[f"{name} {shape}"] = error(rung, *matrices(*shape))
        a, b = matrices(7, 9, 10)
        errors[f"{name} views"] = error(rung, a.T, b[2:, ::2])
    return errors


def attention():
    """Error by rung and shape B, T, M, H, Dh: several blocks, tiles and heads, rows longer than a block has threads."""
    errors = {}
    for B, T, M, H, Dh in ((1, 1, 0, 1, 1), (2, 2, 15, 1, 20), (1, 17, 0, 1, 5), (1, 2, 65, 2, 64), (0, 3, 0, 1, 4)):
        q = RNG.standard_normal((B, T, H, Dh), np.float32) * 3
        k, v = RNG.standard_normal((2, B, M + T, H, Dh), np.float32)
        expected = ops.attention_forward(*(x.astype(float) for x in (q, k, v)))[0]
        for name, attend in cuda_attention.RUNGS.items():
            out = attend(q, np.asfortranarray(k), v)
            assert out.dtype == np.float32
            errors[f"{name} {(B, T, M, H, Dh)}"] = float(np.abs(out - expected).max(initial=0))
    return errors


def without_barriers():
    """Error of both products that have barriers, by rung and number of the barrier that was taken out of its source."""
    errors = {}
    for name in ("shared tiles", "register tile"):
        rung = cuda_matmul.RUNGS[name]
        for which in range(2):
            lines = inspect.getsource(rung.kernel.py_func).splitlines(keepends=True)
            at = [n for n, line in enumerate(lines) if "cuda.syncthreads()" in line][which]
            lines[at] = lines[at].replace("cuda.syncthreads()", "pass")
            names = dict(vars(cuda_matmul))
            exec(compile("".join(lines), f"without {which}", "exec"), names)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what lies in memory that nobody has filled
                planted = replace(rung, kernel=names[rung.kernel.py_func.__name__])
                errors[f"{name} {which}"] = error(planted, *matrices(18, 37, 19))
    return errors


def refusals():
    """What the rungs say of arguments that do not fit."""
    a, b = matrices(2, 3, 4)
    q, k = np.ones((1, 2, 1, 4), np.float32), np.ones((1, 3, 1, 4), np.float32)
    wide = np.ones((1, 2, 1, 65), np.float32)
    product, attend = cuda_matmul.RUNGS["shared tiles"], cuda_attention.one_kernel
    calls = {
        "shapes": lambda: product(a, a),
        "dtype": lambda: product(a, b.astype(float)),
        "fewer keys": lambda: attend(k, q, q),
        "values": lambda: attend(q, k, q),
        "dtype of q": lambda: attend(q.astype(float), k, k),
        "wide": lambda: attend(wide, wide, wide),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as refusal:
            said[name] = str(refusal)
    return said


def timing():
    """The records of `time_all`, tiny: not times worth having, but all that leads to them."""
    return cuda.time_all(size=2, rounds=1, H=1)


def docstrings():
    """Lines of what each rung says of itself."""
    rungs = [rung.kernel.py_func for rung in cuda_matmul.RUNGS.values()] + list(cuda_attention.RUNGS.values())
    return {rung.__name__: len(rung.__doc__.splitlines()) for rung in rungs}


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)  # the simulator's threads wait for one another a lot; let them take turns sooner
    json.dump(globals()[sys.argv[1]](), sys.stdout)
