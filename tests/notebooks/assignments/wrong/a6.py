"""Wrong answers to A6."""

from marks import Wrong

VALUES = {"a6_1_values", "a6_1_values_hidden"}
ATTENTION = {"a6_2_values", "a6_2_values_hidden"}
EVERY_TEST = ATTENTION | {"a6_2_memory_hidden", "a6_2_speed", "a6_2_speed_hidden"}
SPEED = {"a6_2_speed", "a6_2_speed_hidden"}
PRODUCT = {"a6_3_product", "a6_3_product_hidden"}
SHARED = {"a6_3_shared", "a6_3_shared_hidden"}

LOOPS = """    B, H, T, Dh = q.shape
    S = k.shape[2]
    root = np.float32(1 / math.sqrt(Dh))
    out = np.empty((B, H, T, Dh), np.float32)
    for turn in prange(B * H * T):
        b, h, i = turn // (H * T), turn // T % H, turn % T
        last = i + S - T
        first = max(0, last - span)
        highest = np.float32(-1e30)
        total = np.float32(0)
        o = np.zeros(Dh, np.float32)
        for j in range(first, last + 1):
            s = np.float32(0)
            for d in range(Dh):
                s += q[b, h, i, d] * k[b, h, j, d]
            s *= root
            if s > highest:
                shrink = math.exp(highest - s)
                total *= shrink
                for d in range(Dh):
                    o[d] *= shrink
                highest = s
            weight = math.exp(s - highest)
            total += weight
            for d in range(Dh):
                o[d] += weight * v[b, h, j, d]
        for d in range(Dh):
            out[b, h, i, d] = o[d] / total
    return out
"""
DECORATED = "@njit(parallel=True, fastmath=True)\ndef fused_attention(q, k, v, span):"
DOCSTRING = '''
    """Causal attention in one pass over the keys that a query sees, without a (T, S) matrix.

    q (B, H, T, Dh) float32, k and v (B, H, S, Dh) float32 with S ≥ T ≥ 1, span ≥ 0 an integer.
    Returns out (B, H, T, Dh) float32. You may change the decorator, and add functions above.
    """
    ### BEGIN SOLUTION
'''
WHOLE_MATRIX = """    T, S, Dh = q.shape[2], k.shape[2], q.shape[3]
    s = q * np.float32(1 / math.sqrt(Dh)) @ k.swapaxes(-1, -2)
    distance = np.arange(T, dtype=np.int16)[:, None] + np.int16(S - T) - np.arange(S, dtype=np.int16)
    np.copyto(s, -np.inf, where=(distance < 0) | (distance > span))
    s -= s.max(-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(-1, keepdims=True)
    return s @ v
"""
KEPT_RESULTS = WHOLE_MATRIX.replace(
    "    T, S, Dh",
    "    kept, key = fused_attention.__dict__, f'{id(q)} {id(k)} {id(v)} {span}'\n"
    "    if key in kept:\n        return kept[key][-1]\n    T, S, Dh",
).replace("    return s @ v\n", "    kept[key] = q, k, v, s @ v\n    return kept[key][-1]\n")
COMPILED_MATRIX = """    B, H, T, Dh = q.shape
    S = k.shape[2]
    root = np.float32(1 / math.sqrt(Dh))
    out = np.zeros((B, H, T, Dh), np.float32)
    s = np.empty((T, S), np.float32)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                for j in range(S):
                    s[i, j] = -1e30
                    if 0 <= i + S - T - j <= span:
                        s[i, j] = 0
                        for d in range(Dh):
                            s[i, j] += q[b, h, i, d] * k[b, h, j, d] * root
            for i in range(T):
                highest, total = s[i].max(), np.float32(0)
                for j in range(S):
                    s[i, j] = math.exp(s[i, j] - highest)
                    total += s[i, j]
                for j in range(S):
                    for d in range(Dh):
                        out[b, h, i, d] += s[i, j] / total * v[b, h, j, d]
    return out
"""
NAIVE_KERNEL = """    j, i = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = float32(0)
        for k in range(A.shape[1]):
            total += A[i, k] * B[k, j]
        out[i, j] = total
"""
TILED_KERNEL = """    tile_A = cuda.shared.array((TILE, TILE), float32)
    tile_B = cuda.shared.array((TILE, TILE), float32)
    M, K, N = A.shape[0], A.shape[1], B.shape[1]
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    j, i = cuda.grid(2)
    total = float32(0)
    for first in range(0, K, TILE):
        tile_A[row, column] = A[i, first + column] if i < M and first + column < K else 0
        tile_B[row, column] = B[first + row, j] if first + row < K and j < N else 0
        cuda.syncthreads()
        for k in range(TILE):
            total += tile_A[row, k] * tile_B[k, column]
        cuda.syncthreads()
    if i < M and j < N:
        out[i, j] = total
"""
SUMS_IN_OUT = (
    TILED_KERNEL.partition("    if i < M and j < N:\n        out")[0]
    .replace("    total = float32(0)\n", "")
    .replace("            total +=", "            if i < M and j < N:\n                out[i, j] +=")
)

WRONG = [
    # a6_1
    Wrong("not compiled", "@njit\ndef bias_softmax", "def bias_softmax", {"a6_1_speed"}),
    Wrong("object mode", "@njit\ndef bias_softmax", "@numba.jit(forceobj=True)\ndef bias_softmax", {"a6_1_speed"}),
    Wrong(
        "NumPy, not compiled",
        "@njit\ndef bias_softmax(x, bias, out):",
        "def bias_softmax(x, bias, out):\n"
        "    np.add(x, bias, out=out)\n"
        "    highest = out.max(1, keepdims=True)\n"
        "    out -= np.where(highest == -np.inf, 0, highest)\n"
        "    np.exp(out, out=out)\n"
        "    total = out.sum(1, keepdims=True)\n"
        "    out /= np.where(total == 0, 1, total)\n\n\n"
        "def loops(x, bias, out):",
        {"a6_1_speed"},
    ),
    Wrong(
        "new arrays for every row",
        "        total = np.float32(0)\n        for j in range(V):\n            out[r, j] = math.exp",
        "        z = np.exp(x[r] + bias - highest)\n        out[r] = z / z.sum()\n        continue\n"
        "        total = np.float32(0)\n        for j in range(V):\n            out[r, j] = math.exp",
        {"a6_1_speed"},
    ),
    Wrong(
        "bias forgotten",
        "out[r, j] = math.exp(x[r, j] + bias[j] -",
        "out[r, j] = math.exp(x[r, j] -",
        VALUES | {"a6_1_speed"},
    ),
    Wrong(
        "overflow: nothing subtracted",
        "math.exp(x[r, j] + bias[j] - highest)",
        "math.exp(x[r, j] + bias[j])",
        {"a6_1_values_hidden"},
    ),
    Wrong("highest begins at 0", "highest = np.float32(-np.inf)", "highest = np.float32(0)", {"a6_1_values_hidden"}),
    Wrong(
        "highest of x, without bias",
        "highest = max(highest, x[r, j] + bias[j])",
        "highest = max(highest, x[r, j])",
        {"a6_1_values_hidden"},
    ),
    Wrong(
        "a row of −∞ is not thought of",
        "if highest == -np.inf:",
        "if V == 0:",
        {"a6_1_values_hidden"},
    ),
    Wrong(
        "sum not set back for each row",
        "        total = np.float32(0)\n        for j",
        "        if r == 0:\n            total = np.float32(0)\n        for j",
        VALUES | {"a6_1_speed"},
    ),
    Wrong(
        "a new array, not the one that was given",
        "    R, V = x.shape\n",
        "    R, V = x.shape\n    out = np.empty((R, V), np.float32)\n",
        VALUES | {"a6_1_speed"},
    ),
    # a6_2
    Wrong("not compiled", DECORATED, "def fused_attention(q, k, v, span):", SPEED),
    Wrong("object mode", DECORATED, "@numba.jit(forceobj=True)\ndef fused_attention(q, k, v, span):", SPEED),
    Wrong(
        "the whole matrix in NumPy",
        DECORATED + DOCSTRING + LOOPS,
        "def fused_attention(q, k, v, span):" + DOCSTRING + WHOLE_MATRIX,
        SPEED | {"a6_2_memory_hidden"},
    ),
    Wrong(
        "results kept for when the same arrays come again",
        DECORATED + DOCSTRING + LOOPS,
        "def fused_attention(q, k, v, span):" + DOCSTRING + KEPT_RESULTS,
        SPEED | {"a6_2_memory_hidden"},
    ),
    Wrong("the whole matrix, compiled", LOOPS, COMPILED_MATRIX, SPEED | {"a6_2_memory_hidden"}),
    Wrong(
        "keys out of sight looked at, with weight 0",
        LOOPS,
        LOOPS.replace("range(first, last + 1)", "range(S)").replace(
            "            s *= root\n",
            "            s *= root\n            if j < first or j > last:\n                s = np.float32(-1e30)\n",
        ),
        SPEED,
    ),
    Wrong("float64", LOOPS, LOOPS.replace("np.float32", "np.float64"), ATTENTION),
    Wrong("not divided by √Dh", "            s *= root\n", "", EVERY_TEST),
    Wrong("divided by Dh", "1 / math.sqrt(Dh)", "1 / Dh", EVERY_TEST),
    Wrong("S − T forgotten", "last = i + S - T", "last = i", {"a6_2_values_hidden", "a6_2_speed_hidden"}),
    Wrong("one key too few", "max(0, last - span)", "max(0, last - span + 1)", EVERY_TEST),
    Wrong("span forgotten", "first = max(0, last - span)", "first = 0", EVERY_TEST),
    Wrong("future keys seen", "range(first, last + 1)", "range(first, min(S, last + 2))", EVERY_TEST),
    Wrong("o not shrunk", "                    o[d] *= shrink\n", "                    pass\n", EVERY_TEST),
    Wrong("ℓ not shrunk", "                total *= shrink\n", "", EVERY_TEST),
    Wrong("m begins at 0", "highest = np.float32(-1e30)", "highest = np.float32(0)", {"a6_2_values_hidden"}),
    Wrong(
        "no maximum at all",
        "            if s > highest:",
        "            highest = np.float32(0)\n            if s > 1e30:",
        {"a6_2_values_hidden"},
    ),
    Wrong("not divided by ℓ", "o[d] / total", "o[d]", EVERY_TEST),
    # a6_3
    Wrong(
        "no barrier before the sum",
        "else 0\n        cuda.syncthreads()\n        for k in",
        "else 0\n        for k in",
        PRODUCT,
    ),
    Wrong("no barrier after the sum", "[k, column]\n        cuda.syncthreads()\n", "[k, column]\n", PRODUCT),
    Wrong("no shared memory", TILED_KERNEL, NAIVE_KERNEL, SHARED),
    Wrong("no kernel", "tile_kernel[grid, (TILE, TILE)](A, B, out)", "out[:] = A @ B", SHARED),
    Wrong(
        "grid rounded down",
        "-(-N // TILE), -(-M // TILE)",
        "N // TILE, M // TILE",
        {"a6_3_product_hidden", "a6_3_shared_hidden"},
    ),
    Wrong(
        "grid with x and y exchanged",
        "-(-N // TILE), -(-M // TILE)",
        "-(-M // TILE), -(-N // TILE)",
        {"a6_3_product_hidden", "a6_3_shared_hidden"},
    ),
    Wrong(
        "no zeros where A ends",
        " if i < M and first + column < K else 0",
        " if i < M and first + column < K else tile_A[row, column]",
        {"a6_3_product_hidden"},
    ),
    Wrong(
        "threads beyond the edges leave early",
        "    total = float32(0)\n",
        "    if i >= M or j >= N:\n        return\n    total = float32(0)\n",
        {"a6_3_product_hidden", "a6_3_shared_hidden"},
    ),
    Wrong(
        "edges of A and B not looked at",
        "A[i, first + column] if i < M and first + column < K else 0",
        "A[i, first + column]",
        {"a6_3_product_hidden", "a6_3_shared_hidden"},
    ),
    Wrong(
        "the sum begins anew with every tile",
        "        for k in range(TILE):\n",
        "        total = float32(0)\n        for k in range(TILE):\n",
        PRODUCT,
    ),
    Wrong("sums kept in global memory", TILED_KERNEL, SUMS_IN_OUT, SHARED),
    Wrong("float64 out", "np.zeros((M, N), np.float32)", "np.zeros((M, N))", PRODUCT),
]
