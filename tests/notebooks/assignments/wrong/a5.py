"""Wrong answers to A5."""

from marks import Wrong

REMOVED = {"a5_1_owned", "a5_1_logits", "a5_1_order_hidden", "a5_1_empty_hidden", "a5_1_again_hidden"}
FOLDED = {"a5_2_fold", "a5_2_fold_hidden"}
SCORED = {"a5_3_importance", "a5_3_importance_hidden"}
CHOSEN = {"a5_3_choose", "a5_3_choose_hidden"}
STEPPED = {"a5_4_step", "a5_4_step_hidden"}
TUNED = {"a5_4_tune", "a5_4_tune_hidden"}
POINTS = {"a5_5_point", "a5_5_point_hidden", "a5_5_hard_hidden"}
PRUNED = {"a5_5_heads", *POINTS}
LOOP = """    state = None
    training = steps - looks
    for step in range(training):
        loss, grads = loss_and_gradients(smaller)
        lr = 0.005 * (1 - step / training)
        smaller, state = adam_step(smaller, grads, state, lr)
"""

WRONG = [
    # a5_1
    Wrong(
        "rows of Wq, Wk, Wv, Wr taken, not columns",
        'parameters[f"layers.{layer}.{name}"][:, wide]',
        'parameters[f"layers.{layer}.{name}"][wide]',
        REMOVED,
    ),
    Wrong(
        "columns of Wo taken, not rows",
        'parameters[f"layers.{layer}.Wo"][wide]',
        'parameters[f"layers.{layer}.Wo"][:, wide]',
        REMOVED,
    ),
    Wrong("Wr forgotten", 'for name in ("Wq", "Wk", "Wv", "Wr"):', 'for name in ("Wq", "Wk", "Wv"):', REMOVED),
    Wrong("persistent vectors forgotten", 'for name in ("u", "w", "pk", "pv"):', 'for name in ("u", "w"):', REMOVED),
    Wrong(
        "kept taken for the heads that go",
        "for layer, heads in enumerate(kept):",
        "for layer, heads in enumerate([[h for h in range(4) if h not in heads] for heads in kept]):",
        REMOVED,
    ),
    Wrong("every fourth number of a wide axis, not Dh in a row", "h * Dh + d", "h + d * 4", REMOVED),
    Wrong(
        "one matrix's numbers of a head the wrong way round",
        "[:, wide]\n",
        '[:, wide if name != "Wv" else wide[::-1]]\n',
        REMOVED - {"a5_1_owned"},
    ),
    Wrong(
        "index of no heads is an array of floats",
        "narrow = np.array(heads, dtype=int)",
        "narrow = np.array(heads)",
        {"a5_1_empty_hidden"},
    ),
    Wrong(
        "heads put in order in the matrices, not in u, w, pk, pv",
        "for h in heads for d in range(Dh)",
        "for h in sorted(heads) for d in range(Dh)",
        {"a5_1_order_hidden"},
    ),
    Wrong(
        "four heads in every layer, whatever it has now",
        'parameters[f"layers.{layer}.Wo"][wide]',
        'parameters[f"layers.{layer}.Wo"].reshape(4, Dh, -1)[narrow].reshape(-1, 4 * Dh)',
        {"a5_1_again_hidden"},
    ),
    # a5_2
    Wrong("output scaling forgotten", "gate[layer] * scale[layer]", "gate[layer]", FOLDED),
    Wrong("gates forgotten", "gate[layer] * scale[layer]", "np.ones(4) * scale[layer]", FOLDED),
    Wrong("gates in turn, not Dh rows for each", "np.repeat(gate[layer]", "np.tile(gate[layer]", FOLDED),
    Wrong("folded into columns of Wo", "Wo * rows[:, None]", "Wo * rows", FOLDED),
    Wrong("multiplied in place", "(Wo * rows[:, None])", "np.multiply(Wo, rows[:, None], out=Wo)", FOLDED),
    Wrong(
        "bo scaled too",
        "rows = np.repeat(",
        'folded[f"layers.{layer}.bo"] *= scale[layer]\n        rows = np.repeat(',
        FOLDED,
    ),
    Wrong(
        "gates taken for open or closed",
        "gate[layer] * scale[layer]",
        "(gate[layer] > 0.5) * scale[layer]",
        {"a5_2_fold_hidden"},
    ),
    Wrong(
        "float32 becomes float64", "(Wo * rows[:, None]).astype(Wo.dtype)", "Wo * rows[:, None]", {"a5_2_fold_hidden"}
    ),
    # a5_3
    Wrong("gradients cancel: no absolute value", "total += np.abs(gradient)", "total += gradient", SCORED),
    Wrong("squares, not absolute values", "total += np.abs(gradient)", "total += gradient**2", SCORED),
    Wrong("a sum over the batches", "return total / batches", "return total", SCORED),
    Wrong(
        "gates closed while it looks",
        "gradient = loss_and_gate_gradients(np.ones(",
        "gradient = loss_and_gate_gradients(np.zeros(",
        SCORED,
    ),
    Wrong("one batch more", "for _ in range(batches):", "for _ in range(batches + 1):", SCORED),
    Wrong(
        "divided by the norm of the layer",
        "return total / batches",
        "return total / np.linalg.norm(total, axis=1, keepdims=True)",
        SCORED,
    ),
    Wrong(
        "the largest gradient, not the mean",
        "total += np.abs(gradient)\n    return total / batches",
        "total = np.maximum(total, np.abs(gradient))\n    return total",
        {"a5_3_importance_hidden"},
    ),
    Wrong("the worst heads", "np.argsort(-scores, axis=None)", "np.argsort(scores, axis=None)", CHOSEN),
    Wrong(
        "as many heads in each layer",
        "return [[int(n % H) for n in best if n // H == layer] for layer in range(L)]",
        "return [np.argsort(-row)[: round(keep / L)].tolist() for row in scores]",
        CHOSEN,
    ),
    Wrong(
        "heads counted through all layers",
        "return [[int(n % H) for n",
        "return [[int(n) for n",
        CHOSEN,
    ),
    Wrong(
        "layer and head mixed up",
        "return [[int(n % H) for n in best if n // H == layer]",
        "return [[int(n // L) for n in best if n % L == layer]",
        CHOSEN,
    ),
    Wrong(
        "all heads above a line: too many of equal ones",
        "return [[int(n % H) for n in best if n // H == layer] for layer in range(L)]",
        "return [np.flatnonzero(row >= np.sort(scores, axis=None)[-keep]).tolist() for row in scores]",
        {"a5_3_choose_hidden"},
    ),
    # a5_4
    Wrong("no bias correction of m", "m_hat = m[name] / (1 - beta1**t)", "m_hat = m[name]", STEPPED),
    Wrong("no bias correction of v", "v_hat = v[name] / (1 - beta2**t)", "v_hat = v[name]", STEPPED),
    Wrong("steps not counted", 't = state["t"] + 1', "t = 1", STEPPED),
    Wrong("eps under the root", "np.sqrt(v_hat) + eps", "np.sqrt(v_hat + eps)", {"a5_4_step_hidden"}),
    Wrong("uphill", "theta - lr * (", "theta + lr * (", {*STEPPED, "a5_4_decay_hidden"}),
    Wrong("no root", "np.sqrt(v_hat) + eps", "v_hat + eps", STEPPED),
    Wrong("beta1 for v, too", "v[name] = beta2 * state", "v[name] = beta1 * state", STEPPED),
    Wrong(
        "shares of old and new swapped",
        'beta1 * state["m"][name] + (1 - beta1) * g',
        '(1 - beta1) * state["m"][name] + beta1 * g',
        STEPPED,
    ),
    Wrong(
        "parameters changed in place",
        "new[name] = theta - lr",
        "new[name] = theta\n        theta -= lr",
        {*STEPPED, "a5_4_decay_hidden"},
    ),
    Wrong(
        "decay in the gradient", "g = grads[name]", "g, decay = grads[name] + decay * theta, 0", {"a5_4_decay_hidden"}
    ),
    Wrong(
        "decay without lr",
        "theta - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * theta)",
        "theta - lr * m_hat / (np.sqrt(v_hat) + eps) - decay * theta",
        {"a5_4_decay_hidden"},
    ),
    Wrong("decay forgotten", "+ eps) + decay * theta)", "+ eps))", {"a5_4_decay_hidden"}),
    Wrong(
        "gradient descent",
        "parameters, state = adam_step(parameters, grads, state, lr)",
        "parameters = {name: x - lr * grads[name] for name, x in parameters.items()}",
        TUNED,
    ),
    Wrong("state not handed on", "parameters, state = adam_step(", "parameters, _ = adam_step(", {"a5_4_tune"}),
    Wrong("one step less", "for _ in range(steps):", "for _ in range(steps - 1):", TUNED),
    Wrong(
        "always the gradient of the start",
        "state = None\n    for _ in range(steps):\n        loss, grads = loss_and_gradients(parameters)",
        "state, start = None, parameters\n    for _ in range(steps):\n        loss, grads = loss_and_gradients(start)",
        TUNED,
    ),
    Wrong(
        "a look at the loss after every step",
        "parameters, state = adam_step(parameters, grads, state, lr)",
        "parameters, state = adam_step(parameters, grads, state, lr)\n        print(loss_and_gradients(parameters)[0])",
        TUNED,
    ),
    # a5_5
    Wrong("the worst heads stay", "np.argsort(-importance, axis=None)", "np.argsort(importance, axis=None)", POINTS),
    Wrong("no fine-tuning", "training = steps - looks", "training = 0", POINTS),
    Wrong("learning rate a hundred times too small", "lr = 0.005 *", "lr = 0.00005 *", POINTS),
    Wrong("moved parameters thrown away", "smaller, state = adam_step(", "_, state = adam_step(", POINTS),
    Wrong(
        "uphill",
        "smaller, state = adam_step(smaller, grads, state, lr)",
        "smaller, state = adam_step(smaller, grads, state, -lr)",
        PRUNED,
    ),
    Wrong("one step over the budget", "for step in range(training):", "for step in range(training + 1):", PRUNED),
    Wrong("looks not counted", "training = steps - looks", "training = steps", PRUNED),
    Wrong(
        "the best of each layer: too many heads",
        "best = np.argsort(-importance, axis=None)[:keep]",
        "best = [layer * H + h for layer in range(L) for h in np.argsort(-importance[layer])[:keep]]",
        PRUNED,
    ),
    Wrong(
        "trained, but not pruned", "smaller = remove_heads(parameters, kept, Dh)", "smaller = dict(parameters)", PRUNED
    ),
    Wrong("always six heads", "[:keep]\n    kept", "[:6]\n    kept", {"a5_5_point_hidden"}),
    Wrong(
        "trained first, cut afterwards",
        f"smaller = remove_heads(parameters, kept, Dh)\n{LOOP}    return smaller",
        f"smaller = parameters\n{LOOP}    return remove_heads(smaller, kept, Dh)",
        POINTS,
    ),
]
