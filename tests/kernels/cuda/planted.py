"""Kernels with what the compiler's tests forbid."""

from tinyprune.kernels.cuda.device.instructions import load4
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, floats, int32, kernel

THREADS = 1024
MANY = 128
TOO_MANY = 256
LARGE = 4 * THREADS
TOO_LARGE = 13 * THREADS


@kernel(floats, int32, threads=256)
def double_precision(x, n):
    i = cuda.grid(1)
    if i < n:
        x[i] = max(x[i], 0.0)


@kernel(floats, int32, threads=256, float64=True)
def double_precision_on_purpose(x, n):
    i = cuda.grid(1)
    if i < n:
        x[i] = max(x[i], 0.0)


@kernel(floats, int32, threads=256)
def stack(x, n):
    """Its array is indexed by what is known only when it runs."""
    own = cuda.local.array(MANY, float32)
    for i in range(n):
        own[i] = x[i]
    for i in range(n):
        x[i] = own[n - 1 - i]


@kernel(floats, int32, threads=256)
def spills(x, n):
    """More sums than a thread has registers."""
    sums = cuda.local.array(TOO_MANY, float32)
    for j in range(TOO_MANY):
        sums[j] = x[j]
    for i in range(n):
        for j in range(TOO_MANY):
            sums[j] += x[i] * x[i + j]
    for j in range(TOO_MANY):
        x[j] = sums[j]


@kernel(floats, threads=THREADS)
def shared_memory(x):
    scratch = cuda.shared.array(TOO_LARGE, float32)
    scratch[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    cuda.syncthreads()  # another thread's entry is read
    x[cuda.threadIdx.x] = scratch[THREADS - 1 - cuda.threadIdx.x]


@kernel(floats, threads=THREADS)
def registers(x):
    """Does not fit on a multiprocessor: 1024 threads have 64 registers each."""
    sums = cuda.local.array(MANY, float32)
    for j in range(MANY):
        sums[j] = x[j]
    for i in range(THREADS):
        for j in range(MANY):
            sums[j] += x[i] * x[i + j]
    for j in range(MANY):
        x[j] = sums[j]


@device
def sum_of_four(x, i):
    a, b, c, d = load4(x, i)
    return a + b + c + d


@kernel(floats, threads=THREADS)
def vectors_anywhere(x):
    scratch = cuda.shared.array(LARGE, float32)
    scratch[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    cuda.syncthreads()  # other threads' entries are read
    x[cuda.threadIdx.x] = sum_of_four(scratch, 4 * (THREADS - 1 - cuda.threadIdx.x))


@kernel(floats, threads=THREADS)
def unknown_name(x):
    x[cuda.threadIdx.x] = of_nothing  # noqa: F821
