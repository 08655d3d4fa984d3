"""Wrong answers to A1."""

from marks import Wrong

WRONG = [
    # a1_1
    Wrong(
        "bias forgotten",
        "return x @ W + b,",
        "return x @ W,",
        {"a1_1_forward", "a1_1_forward_hidden"},
    ),
    Wrong(
        "leading axes lost",
        "return x @ W + b,",
        "return x.reshape(-1, len(W)) @ W + b,",
        {"a1_1_forward", "a1_1_forward_hidden"},
    ),
    Wrong(
        "dx without the transpose",
        "return dout @ W.T,",
        "return dout @ W.reshape(W.T.shape),",
        {"a1_1_backward", "a1_1_backward_hidden"},
    ),
    Wrong(
        "db a mean over the rows",
        "flat_dout.sum(axis=0)",
        "flat_dout.mean(axis=0)",
        {"a1_1_backward", "a1_1_backward_hidden"},
    ),
    Wrong(
        "written for matrices only: db summed over the first axis",
        "flat_dout.sum(axis=0)",
        "dout.sum(axis=0)",
        {"a1_1_backward_hidden"},
    ),
    Wrong(
        "gradients in another order",
        "return dout @ W.T, flat_x.T @ flat_dout,",
        "return flat_x.T @ flat_dout, dout @ W.T,",
        {"a1_1_backward", "a1_1_backward_hidden"},
    ),
    # a1_2
    Wrong(
        "variance divided by D − 1",
        "(centred**2).mean(axis=-1, keepdims=True)",
        "centred.var(axis=-1, ddof=1, keepdims=True)",
        {"a1_2_forward", "a1_2_forward_hidden"},
    ),
    Wrong("eps outside the root", "keepdims=True) + eps)", "keepdims=True)) + eps", {"a1_2_forward_hidden"}),
    Wrong("eps forgotten", "keepdims=True) + eps)", "keepdims=True))", {"a1_2_forward_hidden"}),
    Wrong(
        "normalised over all positions",
        "x.mean(axis=-1, keepdims=True)",
        "x.mean(keepdims=True)",
        {"a1_2_forward", "a1_2_forward_hidden"},
    ),
    Wrong(
        "the road through the mean forgotten",
        "return straight + through_mean + through_std",
        "return straight + through_std",
        {"a1_2_backward", "a1_2_backward_hidden"},
    ),
    Wrong(
        "the road through the root forgotten",
        "return straight + through_mean + through_std",
        "return straight + through_mean",
        {"a1_2_backward", "a1_2_backward_hidden"},
    ),
    Wrong("scale left out of dn", "dn = dout * scale", "dn = dout", {"a1_2_backward", "a1_2_backward_hidden"}),
    Wrong(
        "written for matrices only: sums over the first axis",
        "axes = tuple(range(dout.ndim - 1))",
        "axes = 0",
        {"a1_2_backward_hidden"},
    ),
    Wrong(
        "dout changed in place",
        "dn = dout * scale",
        "dn = dout\n    dn *= scale",
        {"a1_2_backward", "a1_2_backward_hidden"},
    ),
    Wrong(
        "x changed in place",
        "centred = x - x.mean(axis=-1, keepdims=True)",
        "x -= x.mean(axis=-1, keepdims=True)\n    centred = x",
        {"a1_2_forward_hidden"},
    ),
    # a1_3
    Wrong(
        "overflow: nothing subtracted",
        "shifted = logits - logits.max(axis=-1, keepdims=True)",
        "shifted = logits",
        {"a1_3_forward_hidden"},
    ),
    Wrong(
        "largest logit of all rows subtracted",
        "logits.max(axis=-1, keepdims=True)",
        "logits.max()",
        {"a1_3_forward_hidden"},
    ),
    Wrong(
        "logarithm to base 2",
        "return -picked.mean(),",
        "return -picked.mean() / np.log(2),",
        {"a1_3_forward", "a1_3_forward_hidden"},
    ),
    Wrong(
        "a sum, not a mean", "return -picked.mean(),", "return -picked.sum(),", {"a1_3_forward", "a1_3_forward_hidden"}
    ),
    Wrong(
        "dout forgotten",
        "return dout * (np.exp(log_p)",
        "return (np.exp(log_p)",
        {"a1_3_backward", "a1_3_backward_hidden"},
    ),
    Wrong(
        "mean forgotten",
        "- np.eye(V)[targets]) / targets.size",
        "- np.eye(V)[targets])",
        {"a1_3_backward", "a1_3_backward_hidden"},
    ),
    Wrong("divided by the texts, not by the positions", "/ targets.size", "/ len(targets)", {"a1_3_backward_hidden"}),
    Wrong(
        "softmax for every word, also the one that came",
        "(np.exp(log_p) - np.eye(V)[targets])",
        "np.exp(log_p)",
        {"a1_3_backward", "a1_3_backward_hidden"},
    ),
]
