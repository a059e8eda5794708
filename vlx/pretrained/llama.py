"""Names of LLaMA's public files: Hugging Face's `LlamaForCausalLM`, and Meta's `consolidated.*.pth`.

The network rotates the pairs of features (i, i + head_dim/2), as Hugging Face does; in Meta's files the two
of a pair stand side by side, and the patterns of queries and keys set them apart: "(h i p) d -> d h (p i)".
"""

from vlx.pretrained.tables import Row

# A tied model's file may hold the tensor twice.
TIED_COPIES = {"lm_head.weight": "model.embed_tokens.weight"}

# Meta's larger models come in shards: what matches is joined along the axis, norms are whole in each.
META_SHARD_AXES = (
    (r"^tok_embeddings\.|\.attention\.wo\.|\.feed_forward\.w2\.", 1),
    (r"^output\.|\.attention\.w[qkv]\.|\.feed_forward\.w[13]\.", 0),
)

_DENSE = ("o i -> i o", {})
_BLOCK = "params/blocks"


def rows(num_heads: int, num_groups: int, tie_embeddings: bool = False) -> list[Row]:
  """Of `save_pretrained`."""
  queries, keys = (("(h e) d -> d h e", {"h": heads}) for heads in (num_heads, num_groups))
  out = ("d (h e) -> h e d", {"h": num_heads})
  layer = "model.layers.{layer}"
  table = [
      Row("model.embed_tokens.weight", "params/token_embedding/embedding"),
      Row(f"{layer}.input_layernorm.weight", f"{_BLOCK}/attention_norm/scale"),
      Row(f"{layer}.self_attn.q_proj.weight", f"{_BLOCK}/attention/query/kernel", queries),
      Row(f"{layer}.self_attn.k_proj.weight", f"{_BLOCK}/attention/key/kernel", keys),
      Row(f"{layer}.self_attn.v_proj.weight", f"{_BLOCK}/attention/value/kernel", keys),
      Row(f"{layer}.self_attn.o_proj.weight", f"{_BLOCK}/attention/out/kernel", out),
      Row(f"{layer}.post_attention_layernorm.weight", f"{_BLOCK}/mlp_norm/scale"),
      Row(f"{layer}.mlp.gate_proj.weight", f"{_BLOCK}/mlp/gate/kernel", _DENSE),
      Row(f"{layer}.mlp.up_proj.weight", f"{_BLOCK}/mlp/up/kernel", _DENSE),
      Row(f"{layer}.mlp.down_proj.weight", f"{_BLOCK}/mlp/down/kernel", _DENSE),
      Row(f"{layer}.self_attn.rotary_emb.inv_freq", None),  # a constant, in older files
      Row("model.norm.weight", "params/final_norm/scale"),
  ]
  return table if tie_embeddings else [*table, Row("lm_head.weight", "params/head/kernel", _DENSE)]


def meta_rows(num_heads: int, num_groups: int) -> list[Row]:
  """Of `consolidated.*.pth`, the shards joined."""
  queries, keys = (("(h i p) d -> d h (p i)", {"h": heads, "p": 2}) for heads in (num_heads, num_groups))
  values, out = ("(h e) d -> d h e", {"h": num_groups}), ("d (h e) -> h e d", {"h": num_heads})
  layer = "layers.{layer}"
  return [
      Row("tok_embeddings.weight", "params/token_embedding/embedding"),
      Row(f"{layer}.attention_norm.weight", f"{_BLOCK}/attention_norm/scale"),
      Row(f"{layer}.attention.wq.weight", f"{_BLOCK}/attention/query/kernel", queries),
      Row(f"{layer}.attention.wk.weight", f"{_BLOCK}/attention/key/kernel", keys),
      Row(f"{layer}.attention.wv.weight", f"{_BLOCK}/attention/value/kernel", values),
      Row(f"{layer}.attention.wo.weight", f"{_BLOCK}/attention/out/kernel", out),
      Row(f"{layer}.ffn_norm.weight", f"{_BLOCK}/mlp_norm/scale"),
      Row(f"{layer}.feed_forward.w1.weight", f"{_BLOCK}/mlp/gate/kernel", _DENSE),
      Row(f"{layer}.feed_forward.w3.weight", f"{_BLOCK}/mlp/up/kernel", _DENSE),
      Row(f"{layer}.feed_forward.w2.weight", f"{_BLOCK}/mlp/down/kernel", _DENSE),
      Row("rope.freqs", None),  # a constant
      Row("norm.weight", "params/final_norm/scale"),
      Row("output.weight", "params/head/kernel", _DENSE),
  ]
