"""BERT.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018. Here:
the encoder in its published sizes (§3) and the two heads of its pretraining, masked words and next sentence
(§3.1, appendix A.2). Details are those of the released code (google-research/bert, modeling.py,
run_pretraining.py).

Google's code takes GELU by its tanh approximation, Hugging Face's by erf, each for the same weights: a field.
Departure, in training alone: dropout acts on the MLP's hidden layer and not on attention weights, which no
array holds.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlx.models.layers.transformer import ACTIVATIONS, Transformer
from vlx.ops.masks import Full, KeyPadding

# §3: L = 12, H = 768, A = 12 and L = 24, H = 1024, A = 16; the MLP is 4H.
SIZES = {
    "base": dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "large": dict(width=1024, depth=24, num_heads=16, mlp_dim=4096),
}
VOCABULARIES = {"uncased": 30522, "cased": 28996}

_normal = nn.initializers.truncated_normal(0.02)


def published_size(name: str) -> dict:
  """Fields of a published model by size and vocabulary: "base-uncased", "large-cased"."""
  size, vocabulary = name.split("-")
  return dict(SIZES[size], vocab_size=VOCABULARIES[vocabulary], context_length=512)


class BERT(nn.Module):
  """The encoder: words → (pooled `[B, width]`, tokens `[B, T, width]`).

  For callers that make the collection `intermediates` mutable: the output of the embeddings as `embeddings`,
  that of the layers as `encoder/blocks/hidden`, `[depth, B, T, width]`.
  """

  vocab_size: int
  context_length: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  num_segments: int = 2
  activation: str = "gelu"
  layer_norm_epsilon: float = 1e-12
  dropout: float = 0.0  # 0.1 in pretraining
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  def setup(self):
    embed = lambda count: nn.Embed(count, self.width, embedding_init=_normal, dtype=self.dtype)
    self.word_embedding, self.segment_embedding = embed(self.vocab_size), embed(self.num_segments)
    self.position_embedding = self.param(
        "position_embedding", _normal, (self.context_length, self.width)
    )
    self.embedding_norm = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype)
    self.embedding_dropout = nn.Dropout(self.dropout)
    self.encoder = Transformer(
        self.depth, self.num_heads, self.mlp_dim, self.activation, self.dropout,
        self.layer_norm_epsilon, "bert", self.remat, self.unroll, self.dtype, norm="post",
    )
    self.pooler = nn.Dense(self.width, kernel_init=_normal, dtype=self.dtype)

  def words(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length vocab"]:
    """Products with the words' embeddings: a decoder tied to them."""
    return self.word_embedding.attend(x)

  def __call__(
      self,
      text: Int[Array, "batch length"],
      text_mask: Bool[Array, "batch length"] | None = None,
      segments: Int[Array, "batch length"] | None = None,
      *,
      train: bool = False,
  ) -> tuple[Float[Array, "batch width"], Float[Array, "batch length width"]]:
    """Encodes texts.

    Args:
      text: word ids; the first is [CLS].
      text_mask: False for padding, which nothing sees; all True where None.
      segments: 0 for the first sentence, 1 for the second; all 0 where None.
      train: with dropout.

    Raises:
      ValueError: for texts longer than `context_length`.
    """
    length = text.shape[1]
    if length > self.context_length:
      raise ValueError(f"texts of {length} tokens; this encoder takes {self.context_length}")
    segments = jnp.zeros_like(text) if segments is None else segments
    x = self.word_embedding(text) + self.segment_embedding(segments)
    x = self.embedding_norm(x + self.position_embedding[:length].astype(self.dtype))
    self.sow("intermediates", "embeddings", x)
    x = self.embedding_dropout(x, deterministic=not train)
    x = self.encoder(x, Full() if text_mask is None else KeyPadding(text_mask), train=train)
    return jnp.tanh(self.pooler(x[:, 0])), x


class MaskedWordHead(nn.Module):
  """Tokens → what the tied decoder multiplies: Dense, activation, LayerNorm."""

  activation: str
  layer_norm_epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    x = nn.Dense(x.shape[-1], kernel_init=_normal, dtype=self.dtype, name="transform")(x)
    x = ACTIVATIONS[self.activation](x)
    return nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="norm")(x)


class BERTPretraining(nn.Module):
  """The encoder under its two heads: texts → (words `[B, T, vocab]`, next sentence `[B, 2]`), logits in f32.

  Class 0 of the second says that the second sentence follows the first (as in the released code).
  """

  tower: BERT

  def setup(self):
    tower = self.tower
    self.word_head = MaskedWordHead(tower.activation, tower.layer_norm_epsilon, tower.dtype)
    self.word_bias = self.param("word_bias", nn.initializers.zeros, (tower.vocab_size,))
    self.next_sentence_head = nn.Dense(2, kernel_init=_normal, dtype=tower.dtype)

  def __call__(
      self,
      text: Int[Array, "batch length"],
      text_mask: Bool[Array, "batch length"] | None = None,
      segments: Int[Array, "batch length"] | None = None,
      *,
      train: bool = False,
  ) -> tuple[Float[Array, "batch length vocab"], Float[Array, "batch 2"]]:
    pooled, tokens = self.tower(text, text_mask, segments, train=train)
    words = self.tower.words(self.word_head(tokens)).astype(jnp.float32) + self.word_bias
    return words, self.next_sentence_head(pooled).astype(jnp.float32)
