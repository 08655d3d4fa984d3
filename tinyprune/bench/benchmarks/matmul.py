"""Matrix products: all that the model's linear layers take, forward and backward, against NumPy's BLAS.

On a GPU the peer is NVIDIA's cuBLAS as PyTorch calls it, in float32 or, for the backend cuda-tf32, in tf32 as we are.
"""

from __future__ import annotations

from tinyprune.bench.options import Options
from tinyprune.bench.race import OURS, Case, Contender, race
from tinyprune.bench.shapes import STEP_SHAPES, ModelShape, default_shapes, model_shape
from tinyprune.progress import say
from tinyprune.tables import Record

ROUNDS = 15
RAGGED = ((37, 53, 91), (1000, 333, 77))
LARGE = (1024, 1024, 1024)
CUBLAS = "cuBLAS"
TF32_TOLERANCE = 5e-3  # of products whose numbers have 10 bits behind the point, rounded by each in its own way

Product = tuple[int, int, int, str]


def forward_and_backward(rows: int, inputs: int, outputs: int) -> list[Product]:
    """(m, k, n, layout) of X·W, of dX = dY·Wᵀ and of dW = Xᵀ·dY, with W as it lies in memory."""
    return [
        (rows, inputs, outputs, "A·B"),
        (rows, outputs, inputs, "A·Bᵀ"),
        (inputs, rows, outputs, "Aᵀ·B"),
    ]


def model_products(shape: ModelShape) -> list[Product]:
    """Those of q and Wo, of k and v, of all three as one, of R·Wr, of the feed-forward block, of the output layer."""
    c, B = shape.config, shape.B
    S, D = c.M + c.T, c.D
    layers = [(B * c.T, D, D), (B * S, D, D), (B * S, D, 3 * D), (B * c.T, D, c.V)]
    if c.relative:
        layers.append((S, D, D))
    if c.F:
        layers += [(B * c.T, D, c.F), (B * c.T, c.F, D)]
    return [product for layer in layers for product in forward_and_backward(*layer)]


def products(names: tuple[str, ...], backend: str = "numba") -> list[Product]:
    """Those of the models called so, each once; without names, of all models, and beyond."""
    models = names or default_shapes(backend, STEP_SHAPES)
    found = [product for name in models for product in model_products(model_shape(name))]
    if not names:
        for m, k, n in (LARGE, *RAGGED):
            found += [(m, k, n, layout) for layout in ("A·B", "A·Bᵀ", "Aᵀ·B")]
    return list(dict.fromkeys(found))


def matmul_gflop(m: int, k: int, n: int) -> float:
    """Operations of one product, in 10⁹."""
    return 2 * m * k * n / 1e9


def case(product: Product, options: Options) -> Case:
    """One product, by us and by NumPy; on a GPU by cuBLAS, if PyTorch is a peer."""
    m, k, n, layout = product
    arguments = {"m": m, "k": k, "n": n, "layout": layout}
    gflop = matmul_gflop(m, k, n)
    ours = Contender(
        options.subject, OURS, "tinyprune.bench.ours:matmul", {"backend": options.backend} | arguments, gflop
    )
    peers = (blas(product),) if options.device == "cpu" else cublas(product, options)
    return Case(f"{m}×{k}×{n} {layout}", (ours, *peers), tolerance(options, 1e-4))


def blas(product: Product, library: str = "numpy", subject: str = "NumPy's BLAS", compared: bool = True) -> Contender:
    """NumPy as a peer; `library` "numpy" is with BLAS at its best, see `workers.environment`."""
    m, k, n, layout = product
    arguments = {"m": m, "k": k, "n": n, "layout": layout}
    target = "tinyprune.bench.peers.numpy_blas:matmul"
    return Contender(subject, library, target, arguments, matmul_gflop(m, k, n), compared)


def cublas(product: Product, options: Options, compared: bool = True) -> tuple[Contender, ...]:
    """cuBLAS as a peer, if PyTorch is one."""
    if "torch" not in options.peers:
        return ()
    m, k, n, layout = product
    arguments = {"m": m, "k": k, "n": n, "layout": layout, "device": options.device}
    target = "tinyprune.bench.peers.cublas:matmul"
    return (Contender(CUBLAS, "torch", target, arguments, matmul_gflop(m, k, n), compared),)


def tolerance(options: Options, usual: float) -> float:
    """What a `Case` allows: more than usual where products are rounded to tf32."""
    return TF32_TOLERANCE if options.device == "cuda-tf32" else usual


def run(options: Options) -> list[Record]:
    """`tinyprune bench matmul`."""
    if options.device == "cpu" and options.peers:
        say("matmul is compared with NumPy's BLAS, always and only")
    cases = [case(product, options) for product in products(options.shapes, options.backend)]
    return race("matmul", cases, rounds=options.rounds or ROUNDS, threads=options.threads)
