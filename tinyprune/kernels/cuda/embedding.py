"""Rows of a matrix by number: taken, added, summed; and the embedding. See `tinyprune.ops.embedding` and `ops.rows`.

    for each position r:  out[r] = E[ids[r]] · factor(ids[r])       factor(v) = √D · keep(v) / (1 − dropout)
    for each word v:      dE[v] = factor(v) · Σ dout[r] over the positions r of v, in order

Forward has a block for each position. Backward cannot have that: several positions of one word would add to one row, in
random order. So Python sorts the positions by word. Many words occur once, but "the" at every twentieth position; so
the positions of a word are cut into chunks, one block adds the rows of a chunk, and one block adds the chunks of a
word. Rows of dE whose word does not occur are zero. In `add_rows` all places differ, so no two blocks write to one row.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tinyprune.kernels.cuda.arguments import check_floats, check_gradient, check_in_place, contiguous, zeros
from tinyprune.kernels.cuda.device.array import DeviceArray, empty, to_device
from tinyprune.kernels.cuda.device.jit import blocks, cuda, float32, floats, int32, ints, kernel
from tinyprune.kernels.cuda.dropout import DROPOUT, KEEP_ALL, keep_factor
from tinyprune.kernels.formulas import Dropout, draw_mask
from tinyprune.ops.embedding import check_arguments
from tinyprune.ops.rows import check_each_row, check_rows_index

THREADS = 128
CHUNK = 32  # positions whose rows a block adds


@kernel(floats, ints, DROPOUT, int32, floats, threads=THREADS)
def take(x, places, dropout, D, out):
    """Take out (n, D) from x (R, D)."""
    i = cuda.blockIdx.x
    times = keep_factor(places[i], dropout)
    for d in range(cuda.threadIdx.x, D, THREADS):
        out[i * D + d] = x[places[i] * D + d] * times


@kernel(floats, ints, int32, floats, threads=THREADS)
def add(rows, places, D, out):
    """Add rows (n, D) to out (R, D)."""
    i = cuda.blockIdx.x
    for d in range(cuda.threadIdx.x, D, THREADS):
        out[places[i] * D + d] += rows[i * D + d]


@kernel(floats, ints, ints, int32, floats, threads=THREADS)
def sum_chunks(rows, places, starts, D, sums):
    """Compute sums (chunks, D) of the rows of each chunk, whose numbers are in `places` from starts[chunk] on."""
    chunk, d = cuda.blockIdx.x, cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if d < D:
        total = float32(0)
        for k in range(starts[chunk], starts[chunk + 1]):
            total += rows[places[k] * D + d]
        sums[chunk * D + d] = total


@kernel(floats, ints, ints, DROPOUT, int32, floats, threads=THREADS)
def sum_words(sums, words, starts, dropout, D, dE):
    """Set dE[words[w]] to the sum over the chunks of word w, times the factor, or times 0 if the word is dropped."""
    w, d = cuda.blockIdx.x, cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    if d < D:
        total = float32(0)
        for chunk in range(starts[w], starts[w + 1]):
            total += sums[chunk * D + d]
        dE[words[w] * D + d] = total * keep_factor(words[w], dropout)


def numbers(values: NDArray) -> DeviceArray:
    """Copy integers to the GPU's memory, as int32, flat."""
    return to_device(values.reshape(-1).astype(np.int32))


def taken_rows(x: DeviceArray, places: NDArray, mask: Dropout = KEEP_ALL) -> DeviceArray:
    """Return the n rows `places` of x (R, D) times their factors: (n, D)."""
    D = x.shape[1]
    out = empty((places.size, D))
    take(places.size, contiguous(x), numbers(places), mask, D, out)
    return out


def take_rows(x: DeviceArray, index: NDArray) -> DeviceArray:
    """Copy rows, as `ops.take_rows`, for float32 (R, ...); `index` in main memory."""
    check_floats(x=x)
    check_rows_index(index, len(x))
    return taken_rows(x.reshape(len(x), x.size // max(len(x), 1)), index).reshape(index.size, *x.shape[1:])


def add_rows(x: DeviceArray, index: NDArray, rows: DeviceArray) -> DeviceArray:
    """Add rows in place, as `ops.add_rows`, for float32; `index` in main memory."""
    check_floats(x=x, rows=rows)
    check_in_place(x=x)
    check_rows_index(index, len(x))
    check_each_row(x, index, rows)
    add(index.size, contiguous(rows), numbers(index), x.shape[1], x)
    return x


def chunks_of(ids: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Sort rows by word, and cut those of each word into chunks.

    Returns:
        places: numbers of the rows, sorted by word (R,).
        words: that occur, ascending (W,).
        chunk_starts: where in `places` each chunk begins, and R (chunks + 1,).
        word_starts: number of each word's first chunk, and the number of chunks (W + 1,).
    """
    places = np.argsort(ids, kind="stable")
    words, first, count = np.unique(ids[places], return_index=True, return_counts=True)
    chunks = -(-count // CHUNK)
    word_starts = np.concatenate([[0], np.cumsum(chunks)])
    within = np.arange(word_starts[-1]) - np.repeat(word_starts[:-1], chunks)  # number of a chunk within its word
    return places, words, np.append(np.repeat(first, chunks) + CHUNK * within, ids.size), word_starts


def sums_by_word(rows: DeviceArray, ids: NDArray, V: int, mask: Dropout = KEEP_ALL) -> DeviceArray:
    """Add R rows (R, D) of equal id, times the factors of the ids; zeros for other ids: (V, D)."""
    D = rows.shape[1]
    total = zeros((V, D))
    places, words, chunk_starts, word_starts = map(numbers, chunks_of(ids.reshape(-1)))
    sums = empty((chunk_starts.size - 1, D))
    across = blocks(D, THREADS)
    sum_chunks((len(sums), across), contiguous(rows), places, chunk_starts, D, sums)
    sum_words((words.size, across), sums, words, word_starts, mask, D, total)
    return total


def sum_rows(rows: DeviceArray, index: NDArray, n: int) -> DeviceArray:
    """Sum the rows of each place, as `ops.sum_rows`, for float32; `index` in main memory."""
    check_floats(rows=rows)
    check_rows_index(index, n)
    check_each_row(rows, index, rows)
    return sums_by_word(rows, index, n)


def embedding_forward(
    ids: NDArray,
    E: DeviceArray,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[DeviceArray, tuple]:
    """Look up the rows `ids`, integers in main memory, of `E`: `ops.embedding_forward` for float32."""
    check_floats(E=E)
    check_arguments(ids, E, dropout)
    D = E.shape[1]
    mask = draw_mask(dropout, rng, math.sqrt(D) if scale is None else scale)
    out = taken_rows(E, ids, mask=mask).reshape(*ids.shape, D)
    return out, (ids.copy(), E.shape, mask)  # the caller may overwrite its own


def embedding_backward(dout: DeviceArray, cache: tuple) -> DeviceArray:
    """Gradient of `embedding_forward` with respect to `E`, as `ops.embedding_backward`."""
    ids, (V, D), mask = cache
    check_gradient(dout, (*ids.shape, D))
    # out[r] = E[ids[r]] · factor
    return sums_by_word(contiguous(dout).reshape(-1, D), ids, V, mask)
