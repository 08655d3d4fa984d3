"""The parameters of a GPT-2 or a Llama: our names and shapes, and where they are in each format.

Our products are x @ W. The Hub's files of Llama, and all of GGUF, hold the transposes (nn.Linear), those of GPT-2 do
not (Conv1D); its c_attn is Wq, Wk and Wv side by side. An embedding is (V, D) everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyprune.errors import CheckpointError
from tinyprune.pretrained.stored import OTHERWISE, Source

# In each format the parameters outside the layers, and those of layer i. "transformer." (GPT-2) or "model." (Llama)
# comes before the Hub's names (`hub.PREFIX`), except before lm_head.
Table = tuple[dict[str, Source], dict[str, Source]]
HUB: dict[str, Table] = {
    "gpt2": (
        {
            "embedding": Source("wte.weight"),
            "positions": Source("wpe.weight"),
            "ln.scale": Source("ln_f.weight"),
            "ln.bias": Source("ln_f.bias"),
            "unembedding": Source("lm_head.weight"),
        },
        {
            "ln.scale": Source("h.{i}.ln_1.weight"),
            "ln.bias": Source("h.{i}.ln_1.bias"),
            "Wq": Source("h.{i}.attn.c_attn.weight", third=0),
            "Wk": Source("h.{i}.attn.c_attn.weight", third=1),
            "Wv": Source("h.{i}.attn.c_attn.weight", third=2),
            "bq": Source("h.{i}.attn.c_attn.bias", third=0),
            "bk": Source("h.{i}.attn.c_attn.bias", third=1),
            "bv": Source("h.{i}.attn.c_attn.bias", third=2),
            "Wo": Source("h.{i}.attn.c_proj.weight"),
            "bo": Source("h.{i}.attn.c_proj.bias"),
            "ffn.ln.scale": Source("h.{i}.ln_2.weight"),
            "ffn.ln.bias": Source("h.{i}.ln_2.bias"),
            "ffn.W1": Source("h.{i}.mlp.c_fc.weight"),
            "ffn.b1": Source("h.{i}.mlp.c_fc.bias"),
            "ffn.W2": Source("h.{i}.mlp.c_proj.weight"),
            "ffn.b2": Source("h.{i}.mlp.c_proj.bias"),
        },
    ),
    "llama": (
        {
            "embedding": Source("embed_tokens.weight"),
            "ln.scale": Source("norm.weight"),
            "unembedding": Source("lm_head.weight"),
        },
        {
            "ln.scale": Source("layers.{i}.input_layernorm.weight"),
            "Wq": Source("layers.{i}.self_attn.q_proj.weight", transposed=True),
            "Wk": Source("layers.{i}.self_attn.k_proj.weight", transposed=True),
            "Wv": Source("layers.{i}.self_attn.v_proj.weight", transposed=True),
            "Wo": Source("layers.{i}.self_attn.o_proj.weight", transposed=True),
            "ffn.ln.scale": Source("layers.{i}.post_attention_layernorm.weight"),
            "ffn.W1": Source("layers.{i}.mlp.up_proj.weight", transposed=True),
            "ffn.Wg": Source("layers.{i}.mlp.gate_proj.weight", transposed=True),
            "ffn.W2": Source("layers.{i}.mlp.down_proj.weight", transposed=True),
        },
    ),
}
GGUF: Table = (
    {
        "embedding": Source("token_embd.weight"),
        "ln.scale": Source("output_norm.weight"),
        "unembedding": Source("output.weight"),
    },
    {
        "ln.scale": Source("blk.{i}.attn_norm.weight"),
        "Wq": Source("blk.{i}.attn_q.weight", transposed=True),
        "Wk": Source("blk.{i}.attn_k.weight", transposed=True),
        "Wv": Source("blk.{i}.attn_v.weight", transposed=True),
        "Wo": Source("blk.{i}.attn_output.weight", transposed=True),
        "ffn.ln.scale": Source("blk.{i}.ffn_norm.weight"),
        "ffn.W1": Source("blk.{i}.ffn_up.weight", transposed=True),
        "ffn.Wg": Source("blk.{i}.ffn_gate.weight", transposed=True),
        "ffn.W2": Source("blk.{i}.ffn_down.weight", transposed=True),
    },
)


def sources(table: Table, settings: dict[str, Any]) -> dict[str, Source]:
    """Return where each parameter of a model of these settings is; one that is tied has no unembedding."""
    outer, layer = table
    found = {name: source for name, source in outer.items() if name != "unembedding" or not settings["tied"]}
    for i in range(settings["L"]):
        found |= {f"layers.{i}.{name}": s._replace(tensor=s.tensor.format(i=i)) for name, s in layer.items()}
    return found


def check_layers(where: Path, L: int, tensors: int) -> None:
    """Raise CheckpointError if a file has fewer tensors than layers, before we make names for all that it claims."""
    if tensors < L:
        raise CheckpointError(f"{where} has {tensors} tensors, too few for the {L} layers of its settings; {OTHERWISE}")


def parameter_shapes(settings: dict[str, Any], heads: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter, in the order of the forward pass.

    Args:
        settings: as of `Pretrained`.
        heads: that each layer has, in whole groups; None: all H.
    """
    V, D, F, H = settings["V"], settings["D"], settings["F"], settings["H"]
    Dh, heads = D // H, H if heads is None else heads
    wide, narrow = heads * Dh, heads * (settings["kv_heads"] or H) // H * Dh
    gpt2 = settings["kind"] == "gpt2"

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.scale": (D,)} | ({f"{name}.bias": (D,)} if gpt2 else {})

    layer = norm("ln") | {"Wq": (D, wide), "Wk": (D, narrow), "Wv": (D, narrow)}
    if gpt2:
        layer |= {"bq": (wide,), "bk": (narrow,), "bv": (narrow,)}
    layer |= {"Wo": (wide, D)} | ({"bo": (D,)} if gpt2 else {}) | norm("ffn.ln")
    if gpt2:
        layer |= {"ffn.W1": (D, F), "ffn.b1": (F,), "ffn.W2": (F, D), "ffn.b2": (D,)}
    else:
        layer |= {"ffn.W1": (D, F), "ffn.Wg": (D, F), "ffn.W2": (F, D)}
    shapes: dict[str, tuple[int, ...]] = {"embedding": (V, D)}
    if gpt2:
        shapes["positions"] = (settings["T"], D)
    for i in range(settings["L"]):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes | norm("ln") | ({} if settings["tied"] else {"unembedding": (V, D)})
