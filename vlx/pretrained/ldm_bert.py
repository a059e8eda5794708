"""The text encoder of the paper's latent diffusion (CompVis/ldm-text2im-large-256), which diffusers calls LDMBert.

Pre-norm layers whose attention is narrower than they are, over all tokens, padding too; texts are BERT's word pieces.
"""

import pathlib
from collections.abc import Mapping

from vlx.core.files import read_json
from vlx.data.tokenizers import public
from vlx.models.contrastive.clip import CLIPTextEncoder, TextTransformer
from vlx.pretrained import fields
from vlx.pretrained.tables import Row
from vlx.pretrained.torch_rows import layer_norm, transformer_block


def text_encoder(config: Mapping) -> CLIPTextEncoder:
  """Reads a `config.json` of `LDMBertModel`."""
  fields.must_be(config, "scale_embedding", False)
  return _encoder(
    vocab_size=fields.positive_int(config, "vocab_size", 30522),
    context_length=fields.length(config, "max_position_embeddings", 77),
    width=fields.positive_int(config, "d_model", 1280),
    depth=fields.layers(config, "encoder_layers", 32),
    num_heads=fields.positive_int(config, "encoder_attention_heads", 8),
    head_dim=fields.positive_int(config, "head_dim", 64),
    mlp_dim=fields.positive_int(config, "encoder_ffn_dim", 5120),
    activation=fields.one_of(config, "activation_function", fields.ACTIVATIONS, "gelu"),
  )


def _encoder(**sizes) -> CLIPTextEncoder:
  return CLIPTextEncoder(
    TextTransformer(
      causal=False, qkv_bias=False, layer_norm_epsilon=1e-5, initialization="bert", **sizes
    )
  )


def text_config(text: TextTransformer) -> dict:
  """The `config.json` of `LDMBertModel`."""
  fields.exportable("a text LDM", text, causal=False, qkv_bias=False, token_norm=0.0)
  return dict(
    architectures=["LDMBertModel"],
    model_type="ldmbert",
    vocab_size=text.vocab_size,
    max_position_embeddings=text.context_length,
    d_model=text.width,
    encoder_layers=text.depth,
    encoder_attention_heads=text.num_heads,
    head_dim=text.head_dim or text.width // text.num_heads,
    encoder_ffn_dim=text.mlp_dim,
    activation_function=fields.public_activation(text.activation),
    pad_token_id=0,
    scale_embedding=False,
  )


def has_words(folder: pathlib.Path) -> bool:
  """Whether a tokenizer's folder has BERT's word pieces, and not CLIP's."""
  if (folder / "vocab.txt").is_file():
    return True
  file = folder / "tokenizer.json"
  return file.is_file() and fields.section(read_json(file), "model").get("type") == "WordPiece"


def empty_text(tokenizer: pathlib.Path, config: Mapping) -> tuple[int, ...]:
  """The ids of no text: start, end, and padding, which is the first of BERT's words."""
  length = fields.length(config, "max_position_embeddings", 77)
  fields.must_be(config, "pad_token_id", 0)
  ids, _ = public.load(tokenizer).encode("", length)
  return tuple(int(i) for i in ids)


def text_rows(num_heads: int, *, ours: str, public: str = "") -> list[Row]:
  """Of `LDMBertModel`."""
  return [
    Row(f"{public}model.embed_tokens.weight", f"params/{ours}/token_embedding/embedding"),
    Row(f"{public}model.embed_positions.weight", f"params/{ours}/position_embedding"),
    *transformer_block(
      f"{public}model.layers.{{layer}}",
      f"{ours}/transformer/blocks",
      num_heads,
      norms=("self_attn_layer_norm", "final_layer_norm"),
      attention=tuple(f"self_attn.{x}_proj." for x in "qkv"),
      qkv_bias=False,
      out="self_attn.out_proj",
      mlp=("fc1", "fc2"),
    ),
    *layer_norm(f"{public}model.layer_norm", f"{ours}/final_norm"),
    Row(f"{public}to_logits.weight", None),  # of a language model that is not used
    Row(f"{public}to_logits.bias", None),
  ]
