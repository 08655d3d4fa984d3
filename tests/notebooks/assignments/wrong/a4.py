"""Wrong answers to A4."""

from marks import Wrong

PRICE = {"a4_4_price", "a4_4_task", "a4_4_model", "a4_4_price_hidden", "a4_4_gradient_hidden"}

WRONG = [
    # a4_1
    Wrong(
        "steps counted from 1",
        "return lam * min(step / warmup_steps, 1.0)",
        "return lam * min((step + 1) / warmup_steps, 1.0)",
        {"a4_1_warmup", "a4_1_warmup_hidden"},
    ),
    Wrong(
        "rises for ever",
        "min(step / warmup_steps, 1.0)",
        "step / warmup_steps",
        {"a4_1_warmup", "a4_1_warmup_hidden"},
    ),
    Wrong(
        "no warm-up taken for no price",
        "warmup_steps == 0:\n        return lam\n",
        "warmup_steps == 0:\n        return 0.0\n",
        {"a4_1_warmup_hidden"},
    ),
    Wrong(
        "division by zero without a warm-up",
        "if warmup_steps == 0:\n        return lam\n    ",
        "",
        {"a4_1_warmup_hidden"},
    ),
    Wrong(
        "the first step free also without a warm-up",
        "if warmup_steps == 0:\n        return lam\n    return lam * min(step / warmup_steps, 1.0)",
        "return lam * min(step / max(warmup_steps, 1), 1.0)",
        {"a4_1_warmup_hidden"},
    ),
    Wrong("division of integers", "step / warmup_steps", "step // warmup_steps", {"a4_1_warmup", "a4_1_warmup_hidden"}),
    Wrong(
        "full price one step early",
        "min(step / warmup_steps, 1.0)",
        "min(step / max(warmup_steps - 1, 1), 1.0)",
        {"a4_1_warmup", "a4_1_warmup_hidden"},
    ),
    Wrong(
        "no price during the warm-up, all of it after",
        "lam * min(step / warmup_steps, 1.0)",
        "lam * (step >= warmup_steps)",
        {"a4_1_warmup", "a4_1_warmup_hidden"},
    ),
    # a4_2
    Wrong(
        "the shift with the wrong sign",
        "logit + beta * np.log(",
        "logit - beta * np.log(",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    Wrong(
        "P(g = 1) of a hard gate: no shift",
        "return logit + beta * np.log(-gamma / zeta)",
        "return logit",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    Wrong(
        "beta forgotten",
        "beta * np.log(-gamma / zeta)",
        "np.log(-gamma / zeta)",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    Wrong(
        "all of it times beta",
        "return logit + beta * np.log(-gamma / zeta)",
        "return beta * (logit + np.log(-gamma / zeta))",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    Wrong(
        "the gate's value for its probability: the stretch inverted",
        "return logit + beta * np.log(-gamma / zeta)",
        "return np.log((p_open - gamma) / (zeta - p_open))",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    Wrong(
        "P(shut) for P(open)",
        "np.log(p_open) - np.log(1 - p_open)",
        "np.log(1 - p_open) - np.log(p_open)",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    Wrong(
        "the paper's numbers written into the formula",
        "beta * np.log(-gamma / zeta)",
        "0.333 * np.log(0.1 / 1.1)",
        {"a4_2_start_hidden"},
    ),
    Wrong(
        "written for gamma = 1 - zeta",
        "np.log(-gamma / zeta)",
        "np.log(-gamma / (1 - gamma))",
        {"a4_2_start_hidden"},
    ),
    Wrong(
        "one probability for all: the mean",
        "np.log(p_open) - np.log(1 - p_open)",
        "np.log(np.mean(p_open) / (1 - np.mean(p_open)))",
        {"a4_2_start", "a4_2_start_hidden"},
    ),
    # a4_3
    Wrong(
        "open heads of all layers counted together",
        "opened = (gate > 0).sum(axis=1, keepdims=True)",
        "opened = (gate > 0).mean() * H",
        {"a4_3_forward", "a4_3_forward_hidden"},
    ),
    Wrong(
        "gates added up, not counted",
        "(gate > 0).sum(axis=1, keepdims=True)",
        "gate.sum(axis=1, keepdims=True)",
        {"a4_3_forward_hidden"},
    ),
    Wrong(
        "open from a half on",
        "(gate > 0)",
        "(gate >= 0.5)",
        {"a4_3_forward_hidden"},
    ),
    Wrong(
        "division by zero in a layer without open heads",
        "np.maximum(opened, 1)",
        "opened",
        {"a4_3_forward_hidden"},
    ),
    Wrong(
        "c = 1 in a layer without open heads",
        "c = H / np.maximum(opened, 1)",
        "c = np.where(opened > 0, H / np.maximum(opened, 1), 1.0)",
        {"a4_3_backward_hidden"},
    ),
    Wrong(
        "number of layers for number of heads",
        "H = gate.shape[1]",
        "H = len(gate)",
        {"a4_3_forward", "a4_3_forward_hidden"},
    ),
    Wrong(
        "the length kept, not the mean: a root",
        "c = H / np.maximum(opened, 1)",
        "c = np.sqrt(H / np.maximum(opened, 1))",
        {"a4_3_forward", "a4_3_forward_hidden"},
    ),
    Wrong(
        "gates scaled in place",
        "return c * gate, c",
        "gate *= c\n    return gate, c",
        {"a4_3_forward", "a4_3_forward_hidden"},
    ),
    Wrong(
        "no c in the backward",
        "return c * dout",
        "return dout.copy()",
        {"a4_3_backward", "a4_3_backward_hidden"},
    ),
    Wrong(
        "divided by c in the backward",
        "return c * dout",
        "return dout / c",
        {"a4_3_backward", "a4_3_backward_hidden"},
    ),
    Wrong(
        "no gradient for heads that are shut",
        "return c * gate, c\n",
        "return c * gate, c * (gate > 0)\n",
        {"a4_3_backward", "a4_3_backward_hidden"},
    ),
    Wrong(
        "a gradient through c",
        "return c * dout",
        "return c * (dout - dout.mean(axis=1, keepdims=True))",
        {"a4_3_backward", "a4_3_backward_hidden"},
    ),
    # a4_4
    Wrong("no price", "lr * (task + price)", "lr * task", PRICE),
    Wrong("the price with the wrong sign", "lr * (task + price)", "lr * (task - price)", PRICE),
    Wrong(
        "uphill",
        "log_alpha -= lr",
        "log_alpha += lr",
        PRICE,
    ),
    Wrong(
        "the loss uphill",
        "lr * (task + price)",
        "lr * (price - task)",
        {"a4_4_task", "a4_4_model", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "the price goes through the gate, too",
        "price = lam_of(step) * l0_gradient(log_alpha)",
        "price = lam_of(step) * l0_gradient(log_alpha) * dgate",
        {"a4_4_price", "a4_4_model", "a4_4_price_hidden", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "steps of the warm-up counted from 1",
        "lam_of(step)",
        "lam_of(step + 1)",
        {"a4_4_price_hidden", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "the price of the last step in all steps",
        "lam_of(step)",
        "lam_of(steps - 1)",
        {"a4_4_price_hidden", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "lam for the whole price, without the gradient of L0",
        "price = lam_of(step) * l0_gradient(log_alpha)",
        "price = lam_of(step)",
        {"a4_4_model", "a4_4_price_hidden", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "log_alpha changed in place",
        "log_alpha = log_alpha.copy()\n",
        "pass\n",
        {"a4_4_price_hidden"},
    ),
    Wrong(
        "noise drawn once for all steps",
        "log_alpha = log_alpha.copy()\n    for step in range(steps):\n"
        "        u = rng.uniform(1e-6, 1 - 1e-6, log_alpha.shape)\n",
        "log_alpha = log_alpha.copy()\n"
        "    u = rng.uniform(1e-6, 1 - 1e-6, log_alpha.shape)\n    for step in range(steps):\n",
        {"a4_4_task", "a4_4_noise_hidden"},
    ),
    Wrong(
        "noise from another generator",
        "u = rng.uniform(",
        "u = np.random.default_rng(step).uniform(",
        {"a4_4_noise_hidden"},
    ),
    Wrong(
        "noise normal, not uniform",
        "rng.uniform(1e-6, 1 - 1e-6, log_alpha.shape)",
        "1 / (1 + np.exp(-rng.normal(size=log_alpha.shape)))",
        {"a4_4_noise_hidden"},
    ),
    Wrong(
        "noise from 0 to 1",
        "rng.uniform(1e-6, 1 - 1e-6, log_alpha.shape)",
        "rng.uniform(size=log_alpha.shape)",
        {"a4_4_noise_hidden"},
    ),
    Wrong(
        "the model run without scaling",
        "loss_and_gradient(c * gate)",
        "loss_and_gradient(gate)",
        {"a4_4_gradient_hidden"},
    ),
    Wrong("c forgotten on the way back", "dscaled * c * dgate", "dscaled * dgate", {"a4_4_gradient_hidden"}),
    Wrong(
        "only open heads learn",
        "dscaled * c * dgate",
        "dscaled * c * dgate * gate",
        {"a4_4_model", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "no gradient, the loss itself",
        "dscaled * c * dgate",
        "loss * c * dgate",
        {"a4_4_task", "a4_4_model", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "one step too few",
        "for step in range(steps)",
        "for step in range(1, steps)",
        {"a4_4_price", "a4_4_model", "a4_4_price_hidden", "a4_4_noise_hidden", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "the gates returned, not log_alpha",
        "return log_alpha\n",
        "return gate\n",
        {"a4_4_price", "a4_4_model", "a4_4_task", "a4_4_price_hidden", "a4_4_gradient_hidden"},
    ),
    Wrong(
        "the model run twice in a step",
        "loss, dscaled = loss_and_gradient(c * gate)",
        "loss = loss_and_gradient(c * gate)[0]\n        dscaled = loss_and_gradient(c * gate)[1]",
        {"a4_4_price", "a4_4_model", "a4_4_price_hidden", "a4_4_gradient_hidden"},
    ),
    # a4_5
    Wrong(
        "the factor of the square forgotten",
        "lam1 + 2 * lam2 * d",
        "lam1 + lam2 * d",
        {"a4_5_pressure", "a4_5_pressure_hidden"},
    ),
    Wrong(
        "the penalty for the pressure",
        "lam1 + 2 * lam2 * d",
        "heads_total * (lam1 * d + lam2 * d**2)",
        {"a4_5_pressure", "a4_5_pressure_hidden", "a4_5_loop_hidden"},
    ),
    Wrong(
        "the multipliers descend",
        "lam1 + lr * d, lam2 + lr * d**2",
        "lam1 - lr * d, lam2 - lr * d**2",
        {"a4_5_loop_hidden", "a4_5_multipliers", "a4_5_multipliers_hidden"},
    ),
    Wrong(
        "distance not divided by the number of heads",
        "d = (h - target) / heads_total",
        "d = h - target",
        {"a4_5_pressure", "a4_5_pressure_hidden", "a4_5_multipliers_hidden", "a4_5_loop_hidden"},
    ),
    Wrong(
        "target minus heads",
        "d = (h - target) / heads_total",
        "d = (target - h) / heads_total",
        {
            "a4_5_pressure",
            "a4_5_multipliers",
            "a4_5_pressure_hidden",
            "a4_5_multipliers_hidden",
            "a4_5_loop_hidden",
        },
    ),
    Wrong(
        "the pressure from the new multipliers",
        "pressure = lam1 + 2 * lam2 * d",
        "pressure = lam1 + lr * d + 2 * (lam2 + lr * d**2) * d",
        {"a4_5_pressure", "a4_5_pressure_hidden"},
    ),
    Wrong(
        "a pressure that cannot open heads",
        "pressure = lam1 + 2 * lam2 * d",
        "pressure = max(lam1 + 2 * lam2 * d, 0.0)",
        {"a4_5_pressure", "a4_5_pressure_hidden"},
    ),
    Wrong(
        "lam2 moves like lam1",
        "lam2 + lr * d**2",
        "lam2 + lr * d",
        {"a4_5_multipliers", "a4_5_multipliers_hidden"},
    ),
    Wrong(
        "a slope over h for lam2",
        "lam2 + lr * d**2",
        "lam2 + lr * 2 * d * d",
        {"a4_5_multipliers_hidden"},
    ),
    Wrong(
        "lam2 stands still",
        "lam2 + lr * d**2",
        "lam2",
        {"a4_5_multipliers", "a4_5_multipliers_hidden"},
    ),
    Wrong(
        "step size forgotten",
        "lam1 + lr * d, lam2 + lr * d**2",
        "lam1 + d, lam2 + d**2",
        {"a4_5_multipliers_hidden"},
    ),
]
