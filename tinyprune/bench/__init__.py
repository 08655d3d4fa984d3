"""`tinyprune bench`: how fast the compiled core is, and how fast what others would use instead.

    matmul      every product of the model's steps, forward and backward      against NumPy's BLAS
    attention   forward + backward                                            against PyTorch, plain and SDPA
    step        a whole training step                                         against PyTorch, also torch.compile
    generate    one token at a time, keys and values kept                     against PyTorch eager
    memory      peak memory and time against T, open heads and threads        against PyTorch, plain and SDPA
    ladder      the road from a plain loop to the kernels, rung by rung       against NumPy's BLAS
    cuda        the GPU's kernels, one by one                                 against what the GPU can do, and cuBLAS

All but the ladder can be run on a GPU, too (`--backend cuda`), where PyTorch then computes as well: a run ends when the
GPU is done, products are in float32 proper on both sides (in tf32 on both with `--backend cuda-tf32`), and the peer of
matmul is cuBLAS.

What makes the ratios fair:

- Every library has a process of its own (`worker.py`), and these take turns: ours, peer, ours, peer … A process says
  that it is done only when all of its threads sleep, and then waits for its next turn. In one process libraries do
  fight: Numba's OpenMP layer switches on nested parallelism in the libgomp that PyTorch shares, which makes PyTorch 10
  to 100 times slower, and OpenBLAS's threads spin for a while after each product.
- Medians of many turns; before them warm-up, so that nobody's compilation is in a time. A turn in which other programs
  of the machine took a processor away is taken again; `waited_percent` says how much of that is left, and above a tenth
  of the time no ratio is given.
- Every peer is timed alone before our process exists (`alone_ms`). If it is more than 1.25 times slower in the
  comparison, that is repeated, and if it stays so no ratio is given.
- Before a ratio is formed, both sides' results must agree: same weights, same data, whole arrays.
- NumPy as a peer runs without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE, should they be set: they can hold OpenBLAS back
  (to half, on one machine), and we compare with BLAS at its best.
- All have the same number of threads. What a PyTorch user would try is tried, and the faster is what counts:
  AdamW fused or foreach, one thread or all for single tokens. Plain and SDPA are both shown, eager and compiled.

GFLOP are nominal, see `shapes.py`: they count what the formula says, whatever the implementation leaves out or repeats.
"""

# name -> module with `run(options)`, which returns records; imported only when asked for
BENCHMARKS = {
    name: f"tinyprune.bench.benchmarks.{name}"
    for name in ("matmul", "attention", "step", "generate", "memory", "ladder", "cuda")
}
PEERS = ("torch",)
