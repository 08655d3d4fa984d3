"""The parameters of a GPT-2 or a Llama: where ours are in each format.

Our products are x @ W. The Hub's files of Llama, and all of GGUF, hold the transposes (nn.Linear), GPT-2's do
not (Conv1D); its c_attn is Wq, Wk and Wv side by side. An embedding is (V, D) everywhere.
"""

from __future__ import annotations

import re

from tinyprune.config import ModelConfig
from tinyprune.model.parameters import is_bias, parameter_shapes
from tinyprune.pretrained.stored import Source

# In each format, what stands before the names of layer i.
FORMATS = {"gpt2": "h.{i}.", "llama": "layers.{i}.", "gguf": "blk.{i}."}
# Names in these formats, without .weight and .bias; under "q" the name of Wq and bq, under "ln" of its scale and bias.
OUTER = {
    "embedding": ("wte", "embed_tokens", "token_embd"),
    "positions": ("wpe", "", ""),
    "ln": ("ln_f", "norm", "output_norm"),
    "unembedding": ("lm_head", "lm_head", "output"),
}
LAYER = {
    "ln": ("ln_1", "input_layernorm", "attn_norm"),
    "q": ("attn.c_attn", "self_attn.q_proj", "attn_q"),
    "k": ("attn.c_attn", "self_attn.k_proj", "attn_k"),
    "v": ("attn.c_attn", "self_attn.v_proj", "attn_v"),
    "q_norm": ("", "self_attn.q_norm", "attn_q_norm"),
    "k_norm": ("", "self_attn.k_norm", "attn_k_norm"),
    "o": ("attn.c_proj", "self_attn.o_proj", "attn_output"),
    "ffn.ln": ("ln_2", "post_attention_layernorm", "ffn_norm"),
    "ffn.1": ("mlp.c_fc", "mlp.up_proj", "ffn_up"),
    "ffn.g": ("", "mlp.gate_proj", "ffn_gate"),
    "ffn.2": ("mlp.c_proj", "mlp.down_proj", "ffn_down"),
}


def sources(form: str, config: ModelConfig) -> dict[str, Source]:
    """Return where each parameter of a model is in a format, one of `FORMATS`, in the order of the forward pass.

    On the Hub "transformer." (GPT-2) or "model." (Llama) comes before all names but lm_head, see `hub.PREFIX`.
    """
    column, found = list(FORMATS).index(form), {}
    for name in parameter_shapes(config):
        table, prefix, short = OUTER, "", name
        if name.startswith("layers."):
            _, i, short = name.split(".", 2)
            table, prefix = LAYER, FORMATS[form].format(i=i)
        stem = re.sub(r"\.(scale|bias)$|[Wb](?=.$)", "", short)
        tensor = table[stem][column]
        third = "qkv".index(stem) if tensor == "attn.c_attn" else None
        ending = "bias" if is_bias(name) else "weight"
        transposed = "W" in short and form != "gpt2"
        found[name] = Source(f"{prefix}{tensor}.{ending}", transposed, third)
    return found
