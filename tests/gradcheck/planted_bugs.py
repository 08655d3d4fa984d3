"""Wrong gradients to plant: the mistakes that people make when they write a backward pass by hand.

Each is an edit of the real source. `right` stands in the module exactly once; `wrong` takes its place. Every edited
module still runs and gives gradients of the right shape unless the text says otherwise.
"""

from typing import NamedTuple


class Bug(NamedTuple):
    """One wrong edit of `tinyprune.{module}`."""

    module: str
    what: str
    right: str
    wrong: str
    model: str = "all-attention"  # for tinyprune.model: the kind of model that shows it
    adaptive: bool = False


OPERATION_BUGS = [
    # linear
    Bug("ops.linear", "dx reshaped where W must be transposed", "dout_rows @ W.T", "dout_rows @ W.reshape(W.T.shape)"),
    Bug("ops.linear", "sign of dW", "dW = rows(x).T", "dW = -rows(x).T"),
    Bug("ops.linear", "db a mean over the rows, not a sum", "dout_rows.sum(0)", "dout_rows.mean(0)"),
    Bug("ops.linear", "db of the first row only", "dout_rows.sum(0)", "dout_rows[0]"),
    Bug("ops.linear", "bias forgotten, None instead", "dout_rows.sum(0) if has_bias else None", "None"),
    Bug(
        "ops.linear",
        "dout changed in place",
        "dout_rows = rows(dout)",
        "dout_rows = rows(dout)\n    dout_rows /= len(dout_rows)",
    ),
    # embedding
    Bug("ops.embedding", "lost scale sqrt(D)", "dE *= math.sqrt(D)", "dE *= 1"),
    Bug("ops.embedding", "word dropout forgotten", "rows = dout if factor is None else dout * factor", "rows = dout"),
    Bug(
        "ops.embedding",
        "repeated words overwrite each other",
        "dE = sum_rows(rows.reshape(-1, D), ids.reshape(-1), V)",
        "dE = np.zeros((V, D), rows.dtype)\n    dE[ids] = rows",
    ),
    Bug("ops.embedding", "rows summed in unsorted order", "np.add.reduceat(rows[order]", "np.add.reduceat(rows"),
    Bug(
        "ops.embedding",
        "dout changed in place",
        "rows = dout if factor is None else dout * factor",
        "rows = dout\n    rows *= factor",
    ),
    # layernorm
    Bug("ops.layernorm", "path through the mean forgotten", "dn - dn.mean(-1, keepdims=True) - n", "dn - n"),
    Bug("ops.layernorm", "path through the std forgotten", " - n * (dn * n).mean(-1, keepdims=True)) /", ") /"),
    Bug("ops.layernorm", "sign of the path through the std", "keepdims=True) - n * (dn", "keepdims=True) + n * (dn"),
    Bug("ops.layernorm", "scale left out of dn", "dn = dout * scale", "dn = dout"),
    Bug("ops.layernorm", "divided by the variance", "keepdims=True)) / std", "keepdims=True)) / std**2"),
    Bug("ops.layernorm", "dscale from dout alone", "dscale = (dout * n)", "dscale = dout"),
    Bug(
        "ops.layernorm",
        "dbias a mean over positions",
        "dbias = dout.reshape(-1, D).sum(0)",
        "dbias = dout.reshape(-1, D).mean(0)",
    ),
    Bug("ops.layernorm", "dout changed in place", "dn = dout * scale", "dn = dout\n    dn *= scale"),
    # dropout
    Bug("ops.dropout", "lost scale 1/(1 - rate)", "dx /= 1 - rate", "dx /= 1"),
    Bug("ops.dropout", "divided by rate", "dx /= 1 - rate", "dx /= rate"),
    Bug("ops.dropout", "mask forgotten", "dx = dout * keep", "dx = dout.copy()"),
    Bug("ops.dropout", "mask upside down", "dx = dout * keep", "dx = dout * ~keep"),
    Bug("ops.dropout", "dout changed in place", "dx = dout * keep", "dx = dout\n    dx *= keep"),
    # residual
    Bug("ops.residual", "residual path forgotten", "return dout, dropout", "return 0 * dout, dropout"),
    Bug("ops.residual", "residual counted twice", "return dout, dropout", "return 2 * dout, dropout"),
    Bug("ops.residual", "dropout forgotten", "return dout, dropout_backward(dout, cache)", "return dout, dout"),
    Bug(
        "ops.residual",
        "dropout on both paths",
        "return dout, dropout_backward(dout, cache)",
        "return (dropout_backward(dout, cache),) * 2",
    ),
    Bug(
        "ops.residual",
        "paths swapped",
        "return dout, dropout_backward(dout, cache)",
        "return dropout_backward(dout, cache), dout",
    ),
    # context
    Bug(
        "ops.context",
        "memory's gradient given to the segment",
        "dcontext[:, dcontext.shape[1] - T :]",
        "dcontext[:, :T]",
    ),
    Bug("ops.context", "sign", "return dcontext[", "return -dcontext["),
    Bug(
        "ops.context",
        "memory kept, so of wrong shape",
        "return dcontext[:, dcontext.shape[1] - T :]",
        "return dcontext",
    ),
    Bug(
        "ops.context",
        "gradient passed to the last position only",
        "return dcontext[:, dcontext.shape[1] - T :]",
        "dx = 0 * dcontext[:, :T]\n    dx[:, -1] = dcontext[:, -1]\n    return dx",
    ),
    # positions
    Bug("ops.positions", "dP of the first text only", "dout.sum(0)", "dout[0]"),
    Bug("ops.positions", "dP a mean over the batch, not a sum", "dout.sum(0)", "dout.mean(0)"),
    Bug("ops.positions", "gradients swapped, so of wrong shape", "return dout, dP", "return dP, dout"),
    Bug("ops.positions", "last rows taken for the first", "dP[:T] =", "dP[rows - T :] ="),
    Bug("ops.positions", "rows in reverse order", "dP[:T] =", "dP[T - 1 :: -1] ="),
    # projections
    Bug("ops.projections", "path through the values forgotten", "dn += dn_v", "dn += 0"),
    Bug("ops.projections", "path through the queries forgotten", "dn[:, S - T :] += dn_q", "dn += 0"),
    Bug("ops.projections", "queries taken for the first positions", "dn[:, S - T :] += dn_q", "dn[:, :T] += dn_q"),
    Bug("ops.projections", "keys and values swapped", "return dn, dWq, dWk, dWv", "return dn, dWq, dWv, dWk"),
    Bug(
        "ops.projections",
        "keys of the memory forgotten",
        "linear_backward(dk, k_cache)",
        "linear_backward(dk * ([[0]] * (S - T) + [[1]] * T), k_cache)",
    ),
    # attention: gate and scaling
    Bug("ops.attention", "lost output scaling c", "do = dout * scale", "do = 1 * dout"),
    Bug("ops.attention", "lost c in dgate", "dgate = (do * o)", "dgate = (dout * o)"),
    Bug("ops.attention", "dgate of the first text only", "(do * o).sum((0, 1, 3))", "(do * o)[0].sum((0, 2))"),
    Bug("ops.attention", "dgate with the gate in it", "dgate = (do * o)", "dgate = gate * (do * o)"),
    Bug("ops.attention", "gate left out of do", "do *= gate[:, None]", "do *= 1"),
    Bug("ops.attention", "dout changed in place", "do = dout * scale", "do = dout\n    do *= scale"),
    # attention: values and dropout
    Bug(
        "ops.attention",
        "dv from the weights before dropout",
        "dropped = a if keep is None else a * keep / (1 - dropout)",
        "dropped = a",
    ),
    Bug("ops.attention", "dropout mask left out of da", "da *= keep\n", "da *= 1\n"),
    Bug("ops.attention", "lost 1/(1 - rate) in da", "da /= 1 - dropout", "da /= 1"),
    Bug("ops.attention", "lost sqrt(N) in dpv", "dpv = math.sqrt(N) * (trans", "dpv = (trans"),
    Bug("ops.attention", "lost sqrt(N) in da", "transposed(math.sqrt(N) * pv), out=da", "transposed(pv), out=da"),
    Bug("ops.attention", "dpv of the first text only", "[..., S:]) @ do).sum(0)", "[..., S:]) @ do)[0]"),
    # attention: softmax
    Bug("ops.attention", "softmax without its sum", "ds = da - a * da.sum(-1, keepdims=True)", "ds = da"),
    Bug("ops.attention", "sign in the softmax", "ds = da - a * da.sum", "ds = da + a * da.sum"),
    Bug(
        "ops.attention",
        "a softmax of its own for the context",
        "ds = da - a * da.sum(-1, keepdims=True)",
        "ds = da - a * da[..., :S].sum(-1, keepdims=True)",
    ),
    Bug("ops.attention", "softmax of the dropped weights", "ds = da - a * da.sum", "ds = da - dropped * da.sum"),
    # attention: scores
    Bug("ops.attention", "lost 1/sqrt(Dh) in dq", "dq = (ds_context @ k) * root", "dq = ds_context @ k"),
    Bug("ops.attention", "lost 1/sqrt(Dh) in dk", "@ (q * root)", "@ q"),
    Bug("ops.attention", "bias u left out of dk", "@ ((q + u[:, None]) * root)", "@ (q * root )"),
    Bug("ops.attention", "bias w left out of dr", "@ ((q + w[:, None]) * root)", "@ (q * root )"),
    Bug("ops.attention", "shared bias u summed over one text only", "du = dq.sum((0, 2))", "du = dq[0].sum(1)"),
    Bug(
        "ops.attention",
        "shared bias w of the last query only",
        "dq_position.sum((0, 2))",
        "dq_position[:, :, -1].sum(0)",
    ),
    Bug("ops.attention", "dw holds the content path too", "dw = dq_position.sum", "dw = (dq + dq_position).sum"),
    Bug("ops.attention", "positions forgotten in dq", "dq += dq_position", "dq += 0"),
    Bug("ops.attention", "persistent keys forgotten in dq", "dq += ds_persistent @ pk", "dq += 0"),
    Bug("ops.attention", "relative shift forgotten", "by_key(dP)[...] = ds_context", "dP[..., :S] = ds_context"),
    Bug("ops.attention", "distances not turned back", "dr[:, ::-1].swapaxes(0, 1)", "dr.swapaxes(0, 1)"),
    Bug("ops.attention", "dr a mean over the texts", "* root)).sum(0)", "* root)).mean(0)"),
    Bug("ops.attention", "dpk scaled by 1/sqrt(Dh) as context keys are", "@ q).sum(0)", "@ q).sum(0) * root"),
    # feedforward
    Bug("ops.feedforward", "ReLU forgotten", "da = dh * active", "da = dh"),
    Bug("ops.feedforward", "ReLU upside down", "da = dh * active", "da = dh * ~active"),
    Bug(
        "ops.feedforward",
        "dW2 from before the ReLU",
        "(cache1, active, cache2)\n\n",
        "(cache1, active, (a, W2, True))\n\n",
    ),
    Bug(
        "ops.feedforward",
        "biases swapped, so of wrong shape",
        "return dx, dW1, db1, dW2, db2",
        "return dx, dW1, db2, dW2, db1",
    ),
    # cross_entropy
    Bug("ops.cross_entropy", "mean over rows forgotten", "dout / targets.size", "dout"),
    Bug(
        "ops.cross_entropy",
        "divided by the texts, not the tokens",
        "targets.size\n    return d",
        "len(targets)\n    return d",
    ),
    Bug("ops.cross_entropy", "dout forgotten", "dout / targets.size", "1 / targets.size"),
    Bug("ops.cross_entropy", "target not subtracted", ".reshape(-1)] -= 1", ".reshape(-1)] -= 0"),
    Bug("ops.cross_entropy", "every row's target subtracted from every row", "rows[np.arange(len(rows)), ", "rows[:, "),
    Bug("ops.cross_entropy", "cache changed in place", "np.exp(log_p)\n", "np.exp(log_p, out=log_p)\n"),
    # adaptive_embedding
    Bug(
        "ops.adaptive_embedding", "lost scale sqrt(D)", "dout.reshape(-1, D) * math.sqrt(D)", "1 * dout.reshape(-1, D)"
    ),
    Bug("ops.adaptive_embedding", "word dropout forgotten", "rows_wide *= factor", "rows_wide *= 1"),
    Bug("ops.adaptive_embedding", "sign of the projections", "append(dprojection)", "append(-dprojection)"),
    Bug(
        "ops.adaptive_embedding",
        "rows of one cluster given to the places of another",
        "rows_wide[places[c]]",
        "rows_wide[np.resize(places[c - 1], places[c].size)]",
    ),
    Bug(
        "ops.adaptive_embedding",
        "projection forgotten, so of wrong shape",
        "drows, dprojection, _ =",
        "_, dprojection, _ =",
    ),
    Bug(
        "ops.adaptive_embedding",
        "dout changed in place",
        "rows_wide = dout.reshape(-1, D) * math.sqrt(D)",
        "rows_wide = dout.reshape(-1, D)\n    rows_wide *= math.sqrt(D)",
    ),
    # adaptive_softmax
    Bug("ops.adaptive_softmax", "tail's share of the rows forgotten", "dout * (place.size / R)", "dout"),
    Bug("ops.adaptive_softmax", "tails forgotten in dx", "dx[place] += drows", "dx[place] += 0"),
    Bug("ops.adaptive_softmax", "tails overwrite the head in dx", "dx[place] += drows", "dx[place] = drows"),
    Bug("ops.adaptive_softmax", "table reshaped, not transposed", "(dtable.T)", "(dtable.reshape(tables[c].shape))"),
    Bug(
        "ops.adaptive_softmax",
        "projection reshaped, not transposed",
        "(dprojection.T)",
        "(dprojection.reshape(projections[c - 1].shape))",
    ),
    Bug("ops.adaptive_softmax", "cluster bias forgotten", "dbias[:V0]], dbias[V0:]", "dbias[:V0]], 0 * dbias[V0:]"),
    # hard_concrete
    Bug("ops.hard_concrete", "clip forgotten", "ds = dout * inside * stretch", "ds = dout * stretch"),
    Bug("ops.hard_concrete", "lost stretch (zeta - gamma)", "ds = dout * inside * stretch", "ds = dout * inside"),
    Bug("ops.hard_concrete", "lost temperature", "(1 - s) / temperature", "(1 - s)"),
    Bug("ops.hard_concrete", "temperature in evaluation too", "temperature = 1.0", "temperature = beta"),
    Bug("ops.hard_concrete", "slope of the sigmoid s, not s (1 - s)", "ds * s * (1 - s)", "ds * s"),
    Bug("ops.hard_concrete", "gate in the place of s", "return gate, (s, inside", "return gate, (gate, inside"),
    # top_k
    Bug("ops.top_k", "later rounds forgotten", "through_rest + through_gate", "through_gate"),
    Bug("ops.top_k", "sign of log(1 - p)", "through_rest + through_gate", "through_gate - through_rest"),
    Bug("ops.top_k", "what comes of a itself forgotten", "da = da + (", "da = ("),
    Bug("ops.top_k", "rounds walked through forwards", "in reversed(rounds)", "in rounds"),
    Bug("ops.top_k", "lost temperature", "through_gate) / tau", "through_gate)"),
    Bug("ops.top_k", "softmax's mean forgotten", "p * (dout - (dout * p).sum())", "p * dout"),
    Bug("ops.top_k", "Jacobian transposed", "da @ of_others", "of_others @ da"),
    # l0
    Bug("ops.l0", "slope of the sigmoid p, not p (1 - p)", "dout * p * (1 - p)", "dout * p"),
    Bug("ops.l0", "sign", "return dout * p", "return -dout * p"),
    Bug("ops.l0", "a mean over heads, not a sum", "dout * p * (1 - p)", "dout * p * (1 - p) / p.size"),
    Bug("ops.l0", "dout forgotten", "dout * p * (1 - p)", "p * (1 - p)"),
    # layerwise_error
    Bug("ops.layerwise_error", "factor 2 of the square", "de = dout * 2 *", "de = dout *"),
    Bug("ops.layerwise_error", "lost scale c", "return scale * de", "return de"),
    Bug("ops.layerwise_error", "denominator forgotten", "(G @ e) / full\n    # e", "(G @ e)\n    # e"),
    Bug("ops.layerwise_error", "products between heads forgotten", "2 * (G @ e)", "2 * (np.diag(G) * e)"),
]

MODEL_BUGS = [
    # layers: attention block
    Bug("model.layers", "residual forgotten", "dx = ops.add(dx, ops.context", "dx = ops.add(0 * dx, ops.context"),
    Bug("model.layers", "residual counted twice", "dx = ops.add(dx, ops.context", "dx = ops.add(2 * dx, ops.context"),
    Bug(
        "model.layers",
        "memory's gradient given to the segment",
        'ops.context_backward(dcontext, cache["context"])',
        "dcontext[:, :T]",
    ),
    Bug(
        "model.layers",
        "keys of the memory forgotten in dWk",
        'dn, dp["Wq"], dp["Wk"], dp["Wv"] =',
        'dk = np.concatenate([0 * dk[:, : S - T], dk[:, S - T :]], 1)\n    dn, dp["Wq"], dp["Wk"], dp["Wv"] =',
    ),
    Bug(
        "model.layers",
        "memory forgotten in LayerNorm's gains",
        "dcontext, dp",
        "dn[:, : S - T] = 0\n    dcontext, dp",
        model="transformer-xl",
    ),
    Bug(
        "model.layers",
        "gradients of keys and values swapped",
        "dk.reshape(B, S, H * Dh), dv.reshape(B, S, H * Dh)",
        "dv.reshape(B, S, H * Dh), dk.reshape(B, S, H * Dh)",
    ),
    Bug("model.layers", "biases u and w swapped", '("u", du), ("w", dw)', '("u", dw), ("w", du)'),
    Bug(
        "model.layers",
        "dropout forgotten behind Wo",
        'ops.linear_backward(dblock, cache["Wo"])',
        'ops.linear_backward(dy, cache["Wo"])',
    ),
    # layers: feed-forward block
    Bug(
        "model.layers",
        "residual of the feed-forward forgotten",
        "return ops.add(dx, dx_n), dp",
        "return dx_n, dp",
        "transformer",
    ),
    Bug(
        "model.layers",
        "LayerNorm of the feed-forward forgotten",
        "return ops.add(dx, dx_n), dp",
        "return ops.add(dx, dn), dp",
        "transformer",
    ),
    Bug(
        "model.layers",
        "dropout of the feed-forward forgotten",
        'ops.feedforward_backward(dblock, cache["ffn"])',
        'ops.feedforward_backward(dy, cache["ffn"])',
        "transformer-xl",
    ),
    # transformer: what is shared
    Bug(
        "model.transformer",
        "R of one layer, not the sum over layers",
        "dR_layer if dR is None else ops.add(dR, dR_layer)",
        "dR_layer",
    ),
    Bug(
        "model.transformer",
        "output's part of the tied embedding forgotten",
        'ops.add(ops.embedding_backward(dx, cache["embedding"]), dE.T)',
        'ops.embedding_backward(dx, cache["embedding"])',
    ),
    Bug(
        "model.transformer",
        "input's part of the tied embedding forgotten",
        'ops.add(ops.embedding_backward(dx, cache["embedding"]), dE.T)',
        "dE.T",
    ),
    Bug(
        "model.transformer",
        "tied embedding reshaped, not transposed",
        'cache["embedding"]), dE.T)',
        'cache["embedding"]), dE.reshape(p["embedding"].shape))',
    ),
    Bug(
        "model.transformer",
        "input's part of the tied tables forgotten",
        'f"embedding.{c}": ops.add(a, b)',
        'f"embedding.{c}": a',
        adaptive=True,
    ),
    Bug(
        "model.transformer",
        "output's part of the tied projections forgotten",
        'f"projection.{c}": ops.add(a, b)',
        'f"projection.{c}": b',
        adaptive=True,
    ),
    # transformer: the way through the layers
    Bug(
        "model.transformer",
        "layers walked in the order of the forward pass",
        "in reversed(range(config.L))",
        "in range(config.L)",
    ),
    Bug(
        "model.transformer",
        "last LayerNorm skipped",
        "# h = LayerNorm(x)\n        dx, ",
        "dx = dh\n        _, ",
        "transformer",
    ),
    Bug("model.transformer", "gradient of the loss taken for 1", "entropy_backward(dloss,", "entropy_backward(1.0,"),
    # transformer and parameters: gates and the heads left out
    Bug(
        "model.transformer",
        "path from the gates forgotten",
        "dvalues.insert(0, dgate)",
        "dvalues.insert(0, np.zeros_like(dgate))",
    ),
    Bug(
        "model.gating",
        "gate's own derivative forgotten",
        "by_layer(backward(dout, cache),",
        "by_layer(dout,",
    ),
    Bug(
        "model.transformer",
        "gates put at the front when heads are left out",
        "ops.put_slices(dgate, gates.active, 0, gates.values.size)",
        "ops.put_slices(dgate, range(len(dgate)), 0, gates.values.size)",
    ),
    Bug(
        "model.transformer",
        "layers' gates in the wrong order",
        "dvalues.insert(0,",
        "dvalues.insert(1,",
    ),
    Bug(
        "model.parameters",
        "heads put at the front when others are left out",
        "put(grads[name], heads,",
        "put(grads[name], np.arange(len(heads)),",
    ),
    Bug(
        "model.parameters",
        "heads put in reverse order when others are left out",
        "put(grads[name], heads,",
        "put(grads[name], heads[::-1],",
    ),
]

BUGS = OPERATION_BUGS + MODEL_BUGS
