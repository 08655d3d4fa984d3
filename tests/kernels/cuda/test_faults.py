"""What the emulator must find: faults in small kernels, and bugs planted in the source of the package's own."""

import gc
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda import compiled
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.instructions import load4
from tinyprune.kernels.cuda.device.jit import KERNELS, cuda, float32, floats, int32
from tinyprune.kernels.cuda.updates import address_table, blocks_of, squares

from ..compare import GPU
from ..test_contract import LONG_ROWS, SIZES, assert_like_the_textbook
from .checks import CHECKS
from .modules import PACKAGE
from .test_device import made

pytestmark = pytest.mark.slow


@made(floats, floats, int32, threads=64)
def writes_too_far(x, out, n):
    i = cuda.grid(1)
    if i < n:
        out[i + 1] = x[0]


@made(floats, floats, int32, threads=64)
def reads_too_far(x, out, n):
    out[cuda.threadIdx.x % n] = x[cuda.grid(1) - 64]


@made(floats, floats, int32, threads=64)
def reads_vectors_anywhere(x, out, n):
    a, b, c, d = load4(x, cuda.threadIdx.x)
    out[cuda.threadIdx.x] = a + b + c + d


@made(floats, floats, int32, threads=64)
def reads_too_early(x, out, n):
    shared = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    shared[i] = x[i % n]
    out[i] = shared[63 - i]


@made(floats, floats, int32, threads=64)
def reads_what_is_not_there(x, out, n):
    shared = cuda.shared.array(64, float32)
    i = cuda.threadIdx.x
    if i > 0:
        shared[i] = x[i]
    cuda.syncthreads()
    out[i] = shared[63 - i]


@made(floats, floats, int32, threads=64)
def blocks_that_write_the_same(x, out, n):
    out[cuda.threadIdx.x] = x[cuda.threadIdx.x]


@made(floats, floats, int32, threads=64)
def blocks_that_read_what_others_write(x, out, n):
    if cuda.blockIdx.x == 0:
        out[cuda.threadIdx.x] = x[0]
    else:
        out[64 + cuda.threadIdx.x] = out[cuda.threadIdx.x]


@made(floats, floats, int32, threads=64)
def not_all_wait(x, out, n):
    if cuda.threadIdx.x < 40:
        cuda.syncthreads()
    out[cuda.grid(1)] = x[0]


@made(floats, floats, int32, threads=64)
def never_ends(x, out, n):
    while x[0] == x[0]:
        out[cuda.grid(1)] = x[0]


FAULTS = {
    writes_too_far: "writes outside of every array",
    reads_too_far: "reads outside of every array",
    reads_vectors_anywhere: "is not aligned",
    reads_too_early: "races with another thread of its block",
    reads_what_is_not_there: "reads what was never written",
    blocks_that_write_the_same: "races with another block",
    blocks_that_read_what_others_write: "races with another block",
    not_all_wait: "is not reached by all threads together",
    never_ends: "the kernel does not end",
}


@pytest.mark.parametrize("kernel", FAULTS, ids=lambda kernel: kernel.__name__)
def test_a_fault_is_found_and_its_line_named(emulated, kernel, monkeypatch):
    monkeypatch.setattr("tinyprune.kernels.cuda.emulator.driver.BUDGET", 1000)
    x, out = to_device(np.arange(1.0, 65, dtype=np.float32)), empty(128)
    with pytest.raises(TinypruneError) as raised:
        kernel(2, x, out, 128)
    said = str(raised.value)
    assert FAULTS[kernel] in said and said.startswith(f"{kernel.__name__}, test_faults.py:") and "first thread" in said
    line = int(said.partition("test_faults.py:")[2].partition(",")[0])
    code = kernel.function.__code__
    assert code.co_firstlineno < line <= max(number for *_, number in code.co_lines() if number)


def test_memory_that_was_freed_is_not_read(emulated):
    """A table of addresses outlives its arrays."""
    x, sums = to_device(np.ones(300, np.float32)), empty(1, np.float64)
    table, (_, *numbers) = address_table([x]), blocks_of((300,))
    squares(1, table, *numbers, sums)
    assert to_host(sums) == [300]
    del x
    with pytest.raises(TinypruneError, match=r"squares, updates\.py:\d+, .* reads outside of every array"):
        squares(1, table, *numbers, sums)


def operation(name):
    """Check an operation of the contract suite at two sizes."""
    for sizes in (SIZES, LONG_ROWS):
        assert_like_the_textbook(GPU, name, sizes, np.float32)


BUGS = [  # module, what stands there, what is planted, the check or the operation that has to fail
    ("norms", "scratch[1, line, column] = dbias", "scratch[1, column, line] = dbias", "norms"),
    ("norms", "if thread == 0:", "if thread <= 1:", "norms"),
    ("norms", "sums[(2 * run + 1) * D + d] = dbias", "sums[2 * run * D + D] = dbias", "norms"),
    ("cross_entropy", "if thread == target % THREADS:", "if thread == 0:", "cross entropy"),
    ("cross_entropy", "losses[row] = math.log(total)", "losses[0] = math.log(total)", "cross entropy"),
    ("joins", "if i < split:", "if i <= split:", "context"),
    ("gathers", "if h >= 0 else float32(0)", "if h >= -1 else float32(0)", "put_slices"),
    ("rotary", "out[j] = x2 * c + x1 * s", "out[i + 1] = x2 * c + x1 * s", "rotary"),
    ("updates", "BLOCK_ENTRIES, sizes[n])", "BLOCK_ENTRIES, sizes[n] + 1)", "adamw_updates"),
    ("updates", "d[i] = float32(0)", "d[0] = float32(0)", "lamb_update"),
    ("sums", "if c < C:", "if c <= C:", "sums of columns"),
    ("sums", "if r < p.R:", "if r <= p.R:", "sums of rows"),
    ("products.product", "buffer = int32(BUFFER - buffer)", "buffer = int32(BUFFER - BUFFER)", "products"),
    ("attend.forward", "highest[m] = best", "highest[0] = best", "attention, width 16"),
    ("attend.forward", "if t0 + query < T and", "if t0 + query <= T and", "attention, width 16"),
    ("attend.queries", "steps.add32(entry, n.keys)\n", "entry\n", "attention, width 16"),
    ("attend.keys", "saved.delta[at + m * n.side]", "saved.delta[at + m * n.side + 1]", "attention, width 16"),
    ("attend.distances", "at += n.queries\n", "at += n.side\n", "attention, width 16"),
]  # fmt: skip


def all_codes(code):
    """A code object and those inside of it, by name and line."""
    inner = [
        found for constant in code.co_consts if isinstance(constant, types.CodeType) for found in all_codes(constant)
    ]
    return [((code.co_name, code.co_firstlineno), code), *inner]


@pytest.fixture
def plant(emulated, monkeypatch):
    """A function that replaces a line in a module's source, in the functions that Numba compiles."""
    own, dispatchers = [], []  # the module's kernels, and its functions that kernels call

    def planted(module, old, new):
        path = Path(compiled.__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
        source = path.read_text(encoding="utf-8")
        assert old in source and old.count("\n") == new.count("\n")
        codes = dict(all_codes(compile(source.replace(old, new), str(path), "exec")))
        changed = []
        for found in gc.get_objects():
            if isinstance(found, types.FunctionType) and found.__code__.co_filename == str(path):
                before, after = found.__code__, codes[found.__code__.co_name, found.__code__.co_firstlineno]
                if (before.co_code, before.co_consts) != (after.co_code, after.co_consts):
                    monkeypatch.setattr(found, "__code__", after)
                    changed.append(found.__name__)
            elif type(found).__name__ == "CUDADispatcher" and hasattr(found, "py_func"):  # one is only begun
                dispatchers.extend([found] if found.py_func.__code__.co_filename == str(path) else [])
        assert changed
        own.extend(kernel for kernel in KERNELS if kernel.function.__module__ == PACKAGE + module)
        forget()
        where = compiled.path_of
        monkeypatch.setattr(compiled, "path_of", lambda kernel, *rest: None if kernel in own else where(kernel, *rest))

    def forget():
        """Compile them again at their next launch."""
        for kernel in own:
            vars(kernel).pop("compiled", None)
        for dispatcher in dispatchers:
            dispatcher.overloads.clear()

    yield planted
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=[f"{bug[0]}: {bug[2].strip()}" for bug in BUGS])
def test_a_planted_bug_is_found(plant, module, old, new, check):
    plant(module, old, new)
    with pytest.raises((TinypruneError, AssertionError)) as raised:
        CHECKS.get(check, partial(operation, check))()
    assert "cannot compile" not in str(raised.value)
