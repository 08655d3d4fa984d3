"""Wrong answers to A2."""

from marks import Wrong

FORWARD_2 = {"a2_2_forward", "a2_2_forward_hidden"}
DQ, DK, DV = ({f"a2_3_d{x}", f"a2_3_d{x}_hidden"} for x in "qkv")
FORWARD_4 = {"a2_4_forward", "a2_4_forward_hidden"}
CONTEXT, PERSISTENT = ({f"a2_4_{x}", f"a2_4_{x}_hidden"} for x in ("context", "persistent"))

# what stands in more than one task is found by the lines around it
IN_PERSISTENT_SOFTMAX = """    da = np.concatenate([da_context, da_persistent], axis=-1)
    ds = a * (da - (a * da).sum(axis=-1, keepdims=True))"""

WRONG = [
    # a2_1
    Wrong(
        "overflow: nothing subtracted",
        "np.exp(s - s.max(axis=-1, keepdims=True))",
        "np.exp(s)",
        {"a2_1_forward", "a2_1_forward_hidden"},
    ),
    Wrong("largest score of all rows subtracted", "s.max(axis=-1, keepdims=True)", "s.max()", {"a2_1_forward_hidden"}),
    Wrong(
        "subtracts the mean, which is -inf where a key is not seen",
        "s.max(axis=-1, keepdims=True)",
        "s.mean(axis=-1, keepdims=True)",
        {"a2_1_forward", "a2_1_forward_hidden"},
    ),
    Wrong(
        "scores clipped in place of subtracting",
        "np.exp(s - s.max(axis=-1, keepdims=True))",
        "np.exp(np.clip(s, -700, 700))",
        {"a2_1_forward_hidden"},
    ),
    Wrong(
        "sum over the first axis",
        "e / e.sum(axis=-1, keepdims=True)\n    return a, a",
        "e / e.sum(axis=0, keepdims=True)\n    return a, a",
        {"a2_1_forward", "a2_1_forward_hidden"},
    ),
    Wrong(
        "scores changed in place",
        "e = np.exp(s - s.max(axis=-1, keepdims=True))",
        "s -= s.max(axis=-1, keepdims=True)\n    e = np.exp(s)",
        {"a2_1_forward", "a2_1_forward_hidden"},
    ),
    Wrong(
        "a small number added to the sum, against division by zero",
        "e / e.sum(axis=-1, keepdims=True)\n    return a, a",
        "e / (e.sum(axis=-1, keepdims=True) + 1e-10)\n    return a, a",
        {"a2_1_forward_hidden"},
    ),
    Wrong(
        "as if each weight were moved by its own score only",
        "return a * (da - average)",
        "return a * (1 - a) * da",
        {"a2_1_backward", "a2_1_backward_hidden"},
    ),
    Wrong(
        "plain mean of da, not weighted",
        "average = (a * da).sum(axis=-1, keepdims=True)",
        "average = da.mean(axis=-1, keepdims=True)",
        {"a2_1_backward", "a2_1_backward_hidden"},
    ),
    Wrong(
        "sum over all rows",
        "average = (a * da).sum(axis=-1, keepdims=True)",
        "average = (a * da).sum()",
        {"a2_1_backward", "a2_1_backward_hidden"},
    ),
    Wrong(
        "written for matrices only: sum over axis 1",
        "average = (a * da).sum(axis=-1, keepdims=True)",
        "average = (a * da).sum(axis=min(1, a.ndim - 1), keepdims=True)",
        {"a2_1_backward_hidden"},
    ),
    Wrong(
        "the whole matrix ∂a/∂s for all rows, as given for a2_2",
        "return a * (da - average)",
        "matrix = np.eye(a.shape[-1]) * a[..., None] - a[..., :, None] * a[..., None, :]\n"
        "    return (matrix @ da[..., None])[..., 0]",
        {"a2_1_backward_hidden"},
    ),
    Wrong(
        "the whole matrix ∂a/∂s, row by row",
        "return a * (da - average)",
        "rows = zip(a.reshape(-1, a.shape[-1]), da.reshape(-1, a.shape[-1]))\n"
        "    return np.reshape([(np.diag(x) - np.outer(x, x)) @ y for x, y in rows], a.shape)",
        {"a2_1_backward_hidden"},
    ),
    Wrong(
        "logarithms of weights that are 0",
        "return a * (da - average)",
        "return a * da - np.exp(np.log(a)) * average + 0 * np.log(a)",
        {"a2_1_backward_hidden"},
    ),
    Wrong(
        "da changed in place",
        "average = (a * da).sum(axis=-1, keepdims=True)",
        "da *= a\n    return da - a * da.sum(axis=-1, keepdims=True)",
        {"a2_1_backward", "a2_1_backward_hidden"},
    ),
    # a2_2
    Wrong(
        "√Dh forgotten",
        's = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)\n    #',
        's = np.einsum("bihd,bjhd->bhij", q, k)\n    #',
        FORWARD_2,
    ),
    Wrong(
        "Dh in place of its root",
        's = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)\n    #',
        's = np.einsum("bihd,bjhd->bhij", q, k) / Dh\n    #',
        FORWARD_2,
    ),
    Wrong(
        "root of the model's width H · Dh",
        's = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)\n    #',
        's = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh * q.shape[2])\n    #',
        {"a2_2_forward_hidden"},
    ),
    Wrong(
        "keys of all heads summed",
        's = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)\n    #',
        's = np.einsum("bihd,bjgd->bhij", q, k) / np.sqrt(Dh)\n    #',
        {"a2_2_forward_hidden"},
    ),
    Wrong(
        "no mask",
        "a = given_softmax(np.where(seen, s, -np.inf))",
        "a = given_softmax(s)",
        FORWARD_2,
    ),
    Wrong(
        "mask without the memory: j ≤ i",
        "seen = np.arange(S) <= np.arange(T)[:, None] + S - T\n    a =",
        "seen = np.arange(S) <= np.arange(T)[:, None]\n    a =",
        FORWARD_2,
    ),
    Wrong(
        "a query does not see its own position",
        "seen = np.arange(S) <= np.arange(T)[:, None] + S - T\n    a =",
        "seen = np.arange(S) < np.maximum(np.arange(T)[:, None] + S - T, 1)\n    a =",
        FORWARD_2,
    ),
    Wrong(
        "a query sees one position of the future",
        "seen = np.arange(S) <= np.arange(T)[:, None] + S - T\n    a =",
        "seen = np.arange(S) <= np.arange(T)[:, None] + S - T + 1\n    a =",
        FORWARD_2,
    ),
    Wrong(
        "the memory's oldest positions forgotten: each query sees T keys at most",
        "seen = np.arange(S) <= np.arange(T)[:, None] + S - T\n    a =",
        "age = np.arange(T)[:, None] + S - T - np.arange(S)\n    seen = (age >= 0) & (age < T)\n    a =",
        FORWARD_2,
    ),
    Wrong(
        "scores that are not seen are 0, not -inf",
        "a = given_softmax(np.where(seen, s, -np.inf))",
        "a = given_softmax(np.where(seen, s, 0))",
        FORWARD_2,
    ),
    Wrong(
        "scores that are not seen are -10, not -inf",
        "a = given_softmax(np.where(seen, s, -np.inf))",
        "a = given_softmax(np.where(seen, s, -10))",
        FORWARD_2,
    ),
    Wrong(
        "mask after the softmax",
        "a = given_softmax(np.where(seen, s, -np.inf))",
        "a = given_softmax(s) * seen",
        FORWARD_2,
    ),
    Wrong(
        "softmax over the queries",
        "a = given_softmax(np.where(seen, s, -np.inf))",
        "a = given_softmax(np.where(seen, s, -np.inf).swapaxes(-1, -2)).swapaxes(-1, -2)",
        FORWARD_2,
    ),
    Wrong(
        "heads put last by reshape",
        'return np.einsum("bhij,bjhd->bihd", a, v), (q, k, v, a)',
        "return (a @ v.swapaxes(1, 2)).reshape(q.shape), (q, k, v, a)",
        FORWARD_2,
    ),
    Wrong(
        "values of the first text for all texts",
        'return np.einsum("bhij,bjhd->bihd", a, v), (q, k, v, a)',
        'return np.einsum("bhij,jhd->bihd", a, v[0]), (q, k, v, a)',
        {"a2_2_forward_hidden"},
    ),
    Wrong(
        "queries changed in place",
        's = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)\n    #',
        'q /= np.sqrt(Dh)\n    s = np.einsum("bihd,bjhd->bhij", q, k)\n    #',
        FORWARD_2,
    ),
    # a2_3
    Wrong(
        "dv a mean over the queries",
        'dv = np.einsum("bhij,bihd->bjhd", a, dout)\n    da =',
        'dv = np.einsum("bhij,bihd->bjhd", a, dout) / q.shape[1]\n    da =',
        DV,
    ),
    Wrong(
        "dv: heads put last by reshape",
        'dv = np.einsum("bhij,bihd->bjhd", a, dout)\n    da =',
        "dv = (a.swapaxes(-1, -2) @ dout.swapaxes(1, 2)).reshape(v.shape)\n    da =",
        DV,
    ),
    Wrong(
        "dv summed over the texts",
        'dv = np.einsum("bhij,bihd->bjhd", a, dout)\n    da =',
        'dv = np.einsum("bhij,bihd->jhd", a, dout) * np.ones((len(q), 1, 1, 1))\n    da =',
        {"a2_3_dv_hidden"},
    ),
    Wrong(
        "dq not written yet",
        'dq = np.einsum("bhij,bjhd->bihd", ds, k) / root',
        "dq = None",
        DQ,
    ),
    Wrong(
        "dq: √Dh forgotten",
        'dq = np.einsum("bhij,bjhd->bihd", ds, k) / root',
        'dq = np.einsum("bhij,bjhd->bihd", ds, k)',
        DQ,
    ),
    Wrong(
        "dq: keys of the segment only",
        'dq = np.einsum("bhij,bjhd->bihd", ds, k) / root',
        'T = q.shape[1]\n    dq = np.einsum("bhij,bjhd->bihd", ds[..., -T:], k[:, -T:]) / root',
        DQ,
    ),
    Wrong(
        "dk: √Dh forgotten",
        'dk = np.einsum("bhij,bihd->bjhd", ds, q) / root\n    return dq',
        'dk = np.einsum("bhij,bihd->bjhd", ds, q)\n    return dq',
        DK,
    ),
    Wrong(
        "no gradient into keys of the memory",
        'dk = np.einsum("bhij,bihd->bjhd", ds, q) / root\n    return dq',
        'dk = np.einsum("bhij,bihd->bjhd", ds, q) / root\n    dk[:, : k.shape[1] - q.shape[1]] = 0\n    return dq',
        DK,
    ),
    Wrong(
        "the softmax left out",
        "ds = a * (da - (a * da).sum(axis=-1, keepdims=True))\n    # s = q k / √Dh",
        "ds = da",
        DQ | DK,
    ),
    Wrong(
        "the sum of the softmax left out",
        "ds = a * (da - (a * da).sum(axis=-1, keepdims=True))\n    # s = q k / √Dh",
        "ds = a * da",
        DQ | DK,
    ),
    Wrong(
        "the softmax's sum over the queries",
        "ds = a * (da - (a * da).sum(axis=-1, keepdims=True))\n    # s = q k / √Dh",
        "ds = a * (da - (a * da).sum(axis=-2, keepdims=True))",
        DQ | DK,
    ),
    Wrong(
        "root of the model's width",
        "root = np.sqrt(q.shape[3])\n    # out = a v\n",
        "root = np.sqrt(q.shape[2] * q.shape[3])\n",
        DQ | DK,
    ),
    Wrong(
        "dout changed in place",
        "root = np.sqrt(q.shape[3])\n    # out = a v\n",
        "root = np.sqrt(q.shape[3])\n    dout *= 2\n    dout /= 2 + 1e-6\n",
        DQ | DK | DV,
    ),
    Wrong("gradients in another order", "return dq, dk, dv\n", "return dv, dq, dk\n", DQ | DK | DV),
    # a2_4
    Wrong(
        "two softmaxes, one for the persistent vectors",
        "a = given_softmax(s)\n    out =",
        "a = np.concatenate([given_softmax(s[..., :S]), given_softmax(s[..., S:])], axis=-1)\n    out =",
        FORWARD_4,
    ),
    Wrong(
        "two softmaxes, and their mean",
        "a = given_softmax(s)\n    out =",
        "a = np.concatenate([given_softmax(s[..., :S]), given_softmax(s[..., S:])], axis=-1) / (2 if N else 1)\n"
        "    out =",
        FORWARD_4,
    ),
    Wrong(
        "persistent scores divided by √Dh",
        'np.einsum("bihd,hnd->bhin", q, pk)\n',
        'np.einsum("bihd,hnd->bhin", q, pk) / np.sqrt(Dh)\n',
        {"a2_4_forward_hidden"},
    ),
    Wrong(
        "persistent scores multiplied by √Dh",
        'np.einsum("bihd,hnd->bhin", q, pk)\n',
        'np.einsum("bihd,hnd->bhin", q, pk) * np.sqrt(Dh)\n',
        {"a2_4_forward_hidden"},
    ),
    Wrong(
        "values not multiplied by √N",
        'out += np.sqrt(N) * np.einsum("bhin,hnd->bihd"',
        'out += np.einsum("bhin,hnd->bihd"',
        FORWARD_4,
    ),
    Wrong(
        "values multiplied by √Dh",
        'out += np.sqrt(N) * np.einsum("bhin,hnd->bihd"',
        'out += np.sqrt(Dh) * np.einsum("bhin,hnd->bihd"',
        FORWARD_4,
    ),
    Wrong(
        "the mask as if persistent vectors were the last keys of the segment",
        "s = np.concatenate([np.where(seen, context, -np.inf), persistent], axis=-1)",
        "seen = np.arange(S + N) <= np.arange(T)[:, None] + S + N - T\n"
        "    s = np.where(seen, np.concatenate([context, persistent], axis=-1), -np.inf)",
        FORWARD_4,
    ),
    Wrong(
        "the mask hides persistent vectors",
        "s = np.concatenate([np.where(seen, context, -np.inf), persistent], axis=-1)",
        "seen = np.arange(S + N) <= np.arange(T)[:, None] + S - T\n"
        "    s = np.where(seen, np.concatenate([context, persistent], axis=-1), -np.inf)",
        FORWARD_4,
    ),
    Wrong(
        "persistent vectors of the first head for all heads",
        'np.einsum("bihd,hnd->bhin", q, pk)\n',
        'np.einsum("bihd,nd->bhin", q, pk[0])\n',
        {"a2_4_forward_hidden"},
    ),
    Wrong(
        "the persistent keys' part of dq forgotten",
        "return from_context + from_persistent, dk",
        "return from_context, dk",
        CONTEXT,
    ),
    Wrong(
        "the persistent keys' part of dq divided by √Dh",
        "return from_context + from_persistent, dk",
        "return from_context + from_persistent / root, dk",
        CONTEXT,
    ),
    Wrong(
        "a softmax gradient for context and persistent vectors each",
        IN_PERSISTENT_SOFTMAX,
        "    ds = np.concatenate(\n"
        "        [w * (x - (w * x).sum(axis=-1, keepdims=True))\n"
        "         for w, x in ((a[..., :S], da_context), (a[..., S:], da_persistent))], axis=-1)",
        CONTEXT | PERSISTENT,
    ),
    Wrong(
        "√N forgotten in the gradient of the persistent weights",
        'da_persistent = np.sqrt(N) * np.einsum("bihd,hnd->bhin", dout, pv)',
        'da_persistent = np.einsum("bihd,hnd->bhin", dout, pv)',
        CONTEXT | PERSISTENT,
    ),
    Wrong(
        "√N forgotten in dpv",
        'dpv = np.sqrt(N) * np.einsum("bhin,bihd->hnd"',
        'dpv = np.einsum("bhin,bihd->hnd"',
        PERSISTENT,
    ),
    Wrong(
        "dpk divided by √Dh",
        'dpk = np.einsum("bhin,bihd->hnd", ds_persistent, q)',
        'dpk = np.einsum("bhin,bihd->hnd", ds_persistent, q) / root',
        PERSISTENT,
    ),
    Wrong(
        "dpk of the first text only",
        'dpk = np.einsum("bhin,bihd->hnd", ds_persistent, q)',
        'dpk = np.einsum("hin,ihd->hnd", ds_persistent[0], q[0])',
        {"a2_4_persistent_hidden"},
    ),
    Wrong(
        "dpv a mean over the texts",
        'dpv = np.sqrt(N) * np.einsum("bhin,bihd->hnd", a[..., S:], dout)',
        'dpv = np.sqrt(N) * np.einsum("bhin,bihd->bhnd", a[..., S:], dout).mean(axis=0)',
        {"a2_4_persistent_hidden"},
    ),
    Wrong(
        "dpk and dpv with an axis for the texts",
        "return from_context + from_persistent, dk, dv, dpk, dpv",
        "return from_context + from_persistent, dk, dv, dpk[None], dpv[None]",
        PERSISTENT,
    ),
    Wrong(
        "dpk and dpv exchanged",
        "return from_context + from_persistent, dk, dv, dpk, dpv",
        "return from_context + from_persistent, dk, dv, dpv, dpk",
        PERSISTENT,
    ),
]
