"""What u and w, which are added to all queries, have to do with gradients: sums of ds over the queries of a key.

dk[j] += Σ_i ds[i, j] · u        du += Σ_j (Σ_i ds[i, j]) · k[j]          and so with distances, r and w
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.attend.tiles import ROWS, Tiles, lengths, share_sum
from tinyprune.kernels.cuda.device.instructions import own_thread
from tinyprune.kernels.cuda.device.jit import device, float32
from tinyprune.kernels.cuda.device.vectors import load1, store1


def make_biases(tiles: Tiles, at: int) -> tuple[Callable, Callable, Callable]:
    """Make `put_shares`, `add_bias` and `put_bias_gradient`; at: where the sums of threads are in shared memory.

    After `put_shares` all threads have to wait.
    """
    SIDE, KEYS, n = tiles.side, tiles.keys, lengths(tiles)
    THREADS, EACH, WIDE = n.threads, n.each, n.wide
    SHARES = tiles.queries // ROWS  # threads that share a key's scores

    @device
    def put_shares(tile, i, j, found):
        """Store the thread's sum for each of its keys; i, j: its first query and key."""
        share = i % SIDE + i // (ROWS * SIDE) * SIDE
        for c in range(EACH):
            store1(tile, at + j * SHARES + share + c * SIDE * SHARES, found[c])

    @device
    def add_bias(tile, key, bias, first, sums, n):
        """Add Σ ds of a key times four numbers of a bias, from `first` on, to the thread's sums from 4 · n on."""
        total = share_sum(tile, at + key * SHARES, SHARES)
        for c in range(4):
            sums[4 * n + c] += total * bias[first + c]

    @device
    def put_bias_gradient(tile, W, out, first, factor):
        """Set out[first …] to Σ_key (Σ ds) · key · factor; the tile's keys begin in shared memory at 0."""
        for d in range(own_thread(THREADS), W, THREADS):
            total = float32(0)
            for key in range(KEYS):
                total += share_sum(tile, at + key * SHARES, SHARES) * load1(tile, key * WIDE + d)
            out[first + d] = total * factor

    return put_shares, add_bias, put_bias_gradient
