"""LLaMA's public files: Hugging Face's `LlamaForCausalLM` and `LlamaModel`, Meta's
`consolidated.*.pth`, llama.cpp's GGUF.

The network rotates the pairs of features (i, i + head_dim/2), as Hugging Face does; in the files of
Meta and llama.cpp the two of a pair stand side by side, and the patterns of queries and keys set
them apart: "(h i p) d -> d h (p i)".
"""

from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError
from vlx.models.language.llama import SIZES, LanguageModel, LLaMA, LLaMAEncoder
from vlx.pretrained import fields
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.tables import CheckpointMap, Row

# The names of a `LlamaModel` by themselves, and in a `LlamaForCausalLM`.
ALIASES = ((r"^(?=(embed_tokens|layers|norm)\.)", "model."),)

# A tied model's file may hold the tensor twice.
TIED_COPIES = {"lm_head.weight": "model.embed_tokens.weight"}

# Meta's larger models come in shards: what matches is joined along the axis, norms are whole in
# each.
META_SHARD_AXES = (
  (r"^tok_embeddings\.|\.attention\.wo\.|\.feed_forward\.w2\.", 1),
  (r"^output\.|\.attention\.w[qkv]\.|\.feed_forward\.w[13]\.", 0),
)

_DENSE = ("o i -> i o", {})
_BLOCK = "params/blocks"


def rows(num_heads: int, num_groups: int, tie_embeddings: bool = False) -> list[Row]:
  """Rows for files of `save_pretrained`; those of a model with a tied head are a `LlamaModel`'s
  too.
  """
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
  """Rows for `consolidated.*.pth`, the shards joined."""
  queries, keys = (
    ("(h i p) d -> d h (p i)", {"h": heads, "p": 2}) for heads in (num_heads, num_groups)
  )
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


def gguf_rows(num_heads: int, num_groups: int, tie_embeddings: bool) -> list[Row]:
  """Rows for llama.cpp's architecture `llama`."""
  queries, keys = (
    ("(h i p) d -> d h (p i)", {"h": heads, "p": 2}) for heads in (num_heads, num_groups)
  )
  values, out = ("(h e) d -> d h e", {"h": num_groups}), ("d (h e) -> h e d", {"h": num_heads})
  layer = "blk.{layer}"
  table = [
    Row("token_embd.weight", "params/token_embedding/embedding"),
    Row(f"{layer}.attn_norm.weight", f"{_BLOCK}/attention_norm/scale"),
    Row(f"{layer}.attn_q.weight", f"{_BLOCK}/attention/query/kernel", queries),
    Row(f"{layer}.attn_k.weight", f"{_BLOCK}/attention/key/kernel", keys),
    Row(f"{layer}.attn_v.weight", f"{_BLOCK}/attention/value/kernel", values),
    Row(f"{layer}.attn_output.weight", f"{_BLOCK}/attention/out/kernel", out),
    Row(f"{layer}.ffn_norm.weight", f"{_BLOCK}/mlp_norm/scale"),
    Row(f"{layer}.ffn_gate.weight", f"{_BLOCK}/mlp/gate/kernel", _DENSE),
    Row(f"{layer}.ffn_up.weight", f"{_BLOCK}/mlp/up/kernel", _DENSE),
    Row(f"{layer}.ffn_down.weight", f"{_BLOCK}/mlp/down/kernel", _DENSE),
    Row("output_norm.weight", "params/final_norm/scale"),
  ]
  return table if tie_embeddings else [*table, Row("output.weight", "params/head/kernel", _DENSE)]


def from_hugging_face(
  config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> CheckpointMap:
  """Reads a `config.json` with the model type `llama`.

  A `LlamaModel` is a language model where the config says that the head is tied to the words, else
  layers without a head, for no file says what a head would be.

  Args:
    config: what lies in it.
    shapes: of the tensors in the file beside it; without, the config's architecture counts.

  Raises:
    UserError: for a missing or absurd field, and for what LLaMA 1 and 2 do not have.
  """
  for name, wanted in (
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("rope_scaling", None),
  ):
    fields.must_be(config, name, wanted)
  # transformers from 5 on; before, rope_theta stands by itself
  rope = fields.section(config, "rope_parameters")
  fields.must_be(rope, "rope_type", "default")
  fields.must_be(rope, "partial_rotary_factor", 1.0)
  width = fields.positive_int(config, "hidden_size", most=fields.MAX_WIDTH)
  heads = fields.positive_int(config, "num_attention_heads")
  groups = fields.positive_int(config, "num_key_value_heads", heads)
  fields.divides("hidden_size", width, "num_attention_heads", heads)
  fields.divides("num_attention_heads", heads, "num_key_value_heads", groups)
  if config.get("head_dim") is not None:
    fields.must_be(config, "head_dim", width // heads)
  tied = fields.flag(config, "tie_word_embeddings", False)
  decoder = LLaMA(
    vocab_size=fields.positive_int(config, "vocab_size"),
    width=width,
    depth=fields.layers(config, "num_hidden_layers"),
    num_heads=heads,
    num_groups=groups,
    mlp_dim=fields.positive_int(config, "intermediate_size"),
    context_length=fields.length(config, "max_position_embeddings", 2048),
    epsilon=fields.epsilon(config, "rms_norm_eps"),
    rope_theta=fields.positive({**config, **rope}, "rope_theta", 10000.0),
    tie_embeddings=tied,
  )
  if not tied and _is_headless(config, shapes):
    return CheckpointMap(LLaMAEncoder(decoder), rows(heads, groups, True), ALIASES)
  return CheckpointMap(
    LanguageModel(decoder), rows(heads, groups, tied), ALIASES, TIED_COPIES if tied else {}
  )


def _is_headless(config, shapes) -> bool:
  """Whether a file is a `LlamaModel`'s; one that names itself otherwise has lost its head."""
  if shapes is not None and "lm_head.weight" in shapes:
    return False
  return config.get("architectures") == ["LlamaModel"] or (
    shapes is not None and "embed_tokens.weight" in shapes
  )


def to_hugging_face(system: LanguageModel | LLaMAEncoder) -> tuple[dict[str, Any], CheckpointMap]:
  """The `config.json` and the table that `LlamaForCausalLM.from_pretrained`, or `LlamaModel`'s,
  takes.
  """
  decoder = system.decoder
  config = dict(
    architectures=["LlamaModel" if isinstance(system, LLaMAEncoder) else "LlamaForCausalLM"],
    model_type="llama",
    vocab_size=decoder.vocab_size,
    hidden_size=decoder.width,
    num_hidden_layers=decoder.depth,
    num_attention_heads=decoder.num_heads,
    num_key_value_heads=decoder.num_groups,
    intermediate_size=decoder.mlp_dim,
    max_position_embeddings=decoder.context_length,
    rms_norm_eps=decoder.epsilon,
    rope_theta=decoder.rope_theta,
    tie_word_embeddings=decoder.tie_embeddings,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
  )
  return config, from_hugging_face(config)


def from_meta(params: Mapping[str, Any]) -> CheckpointMap:
  """Reads the `params.json` beside `consolidated.*.pth`.

  It says neither how many words there are (-1) nor how long texts may be: 32,000, and what the
  published model of these sizes reads, else LLaMA 1's 2,048.

  Raises:
    UserError: for a missing or absurd field.
  """
  width = fields.positive_int(params, "dim", most=fields.MAX_WIDTH)
  heads = fields.positive_int(params, "n_heads")
  multiple = fields.positive_int(params, "multiple_of")
  stretch = fields.positive(params, "ffn_dim_multiplier", 1.0)
  # model.py of the released code rounds down twice, then up to a multiple.
  mlp_dim = multiple * -(-int(stretch * int(8 * width / 3)) // multiple)
  sizes = dict(
    width=width,
    depth=fields.layers(params, "n_layers"),
    num_heads=heads,
    num_groups=fields.positive_int(params, "n_kv_heads", heads),
    mlp_dim=fields.checked_int("ffn_dim_multiplier times 8/3 dim", mlp_dim),
    epsilon=fields.epsilon(params, "norm_eps"),
  )
  fields.divides("dim", width, "n_heads", heads)
  fields.divides("n_heads", heads, "n_kv_heads", sizes["num_groups"])
  published = [s["context_length"] for s in SIZES.values() if sizes.items() <= s.items()]
  vocab_size = params.get("vocab_size", -1)
  decoder = LLaMA(
    vocab_size=32000 if vocab_size == -1 else fields.positive_int(params, "vocab_size"),
    context_length=published[0] if published else 2048,
    rope_theta=fields.positive(params, "rope_theta", 10000.0),
    **sizes,
  )
  return CheckpointMap(LanguageModel(decoder), meta_rows(heads, decoder.num_groups))


def from_gguf(file: TensorFile) -> CheckpointMap:
  """Reads a file of `open_gguf`: its metadata, and whether it has a head.

  Raises:
    UserError: for another architecture, a missing or absurd field, and for what LLaMA 1 and 2 do
      not have.
  """
  metadata = file.metadata
  if (architecture := metadata.get("general.architecture")) != "llama":
    raise UserError(f"a GGUF file of the architecture {architecture!r}; vlx reads 'llama'")
  told = {
    name.removeprefix("llama."): value
    for name, value in metadata.items()
    if name.startswith("llama.")
  }
  width = fields.positive_int(told, "embedding_length", most=fields.MAX_WIDTH)
  heads = fields.positive_int(told, "attention.head_count")
  groups = fields.positive_int(told, "attention.head_count_kv", heads)
  fields.divides("embedding_length", width, "attention.head_count", heads)
  fields.divides("attention.head_count", heads, "attention.head_count_kv", groups)
  for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
    fields.must_be(told, name, width // heads)
  fields.must_be(told, "rope.scaling.type", "none")
  fields.must_be(told, "expert_count", 0)
  tied = "output.weight" not in file.shapes
  decoder = LLaMA(
    vocab_size=fields.shape(file.shapes, "token_embd.weight", 2)[0],
    width=width,
    depth=fields.layers(told, "block_count"),
    num_heads=heads,
    num_groups=groups,
    mlp_dim=fields.positive_int(told, "feed_forward_length"),
    context_length=fields.length(told, "context_length"),
    epsilon=fields.epsilon(told, "attention.layer_norm_rms_epsilon"),
    rope_theta=fields.positive(told, "rope.freq_base", 10000.0),
    tie_embeddings=tied,
  )
  return CheckpointMap(LanguageModel(decoder), gguf_rows(heads, groups, tied))


def preprocess(system, config: Mapping | None = None) -> str:
  """A language model sees no images."""
  del system, config
  return ""
