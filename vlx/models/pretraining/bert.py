"""BERT.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
2018. Here: the encoder in its published sizes (§3), the two heads and the losses of its
pretraining, masked words and next sentence (§3.1, appendix A.2), and embeddings of texts. Details
are those of the released code (google-research/bert, modeling.py, run_pretraining.py).

Google's code takes GELU by its tanh approximation, Hugging Face's by erf, each for the same
weights: a field. Departures, in training alone: dropout acts on the MLP's hidden layer and not on
attention weights, which no array holds; words are masked anew at each step (as by Liu et al., 2019,
RoBERTa, §4.1), each by itself with the paper's probability, where the released code wrote ten
maskings of each text to disk.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Aux, Term, text_inputs
from vlx.losses.sequence import cross_entropy
from vlx.models.layers import apply
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

  Without a pooler, as many public files are, what is pooled is the first token as it stands.

  For callers that make the collection `intermediates` mutable: the output of the embeddings as
  `embeddings`, that of the layers as `encoder/blocks/hidden`, `[depth, B, T, width]`.
  """

  vocab_size: int
  context_length: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  num_segments: int = 2
  has_pooler: bool = True
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
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      dropout=self.dropout,
      layer_norm_epsilon=self.layer_norm_epsilon,
      initialization="bert",
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      norm="post",
    )
    if self.has_pooler:
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
    return jnp.tanh(self.pooler(x[:, 0])) if self.has_pooler else x[:, 0], x


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
  """The encoder under its two heads: texts → (words `[B, T, vocab]`, next sentence `[B, 2]`),
  logits in f32.

  Class 0 of the second says that the second sentence follows the first (as in the released code).
  Without `next_sentence` there is no second head, and None is its output.
  """

  tower: BERT
  next_sentence: bool = True

  def setup(self):
    tower = self.tower
    self.word_head = MaskedWordHead(tower.activation, tower.layer_norm_epsilon, tower.dtype)
    self.word_bias = self.param("word_bias", nn.initializers.zeros, (tower.vocab_size,))
    if self.next_sentence:
      self.next_sentence_head = nn.Dense(2, kernel_init=_normal, dtype=tower.dtype)

  def __call__(
    self,
    text: Int[Array, "batch length"],
    text_mask: Bool[Array, "batch length"] | None = None,
    segments: Int[Array, "batch length"] | None = None,
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch length vocab"], Float[Array, "batch 2"] | None]:
    pooled, tokens = self.tower(text, text_mask, segments, train=train)
    words = self.tower.words(self.word_head(tokens)).astype(jnp.float32) + self.word_bias
    if not self.next_sentence:
      return words, None
    return words, self.next_sentence_head(pooled).astype(jnp.float32)


def mask_words(
  rng: jax.Array,
  text: Int[Array, "batch length"],
  maskable: Bool[Array, "batch length"],
  *,
  vocab_size: int,
  mask_id: int,
  rate: float = 0.15,
) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
  """The text with some of its words hidden, and which they are (§3.1, "Masked LM").

  Of those chosen 80 % become [MASK], 10 % any word, and 10 % stay.
  """
  chosen_rng, fate_rng, word_rng = jax.random.split(rng, 3)
  chosen = maskable & jax.random.bernoulli(chosen_rng, rate, text.shape)
  fate = jax.random.uniform(fate_rng, text.shape)
  word = jax.random.randint(word_rng, text.shape, 0, vocab_size, text.dtype)
  hidden = jnp.where(fate < 0.8, mask_id, jnp.where(fate < 0.9, word, text))
  return jnp.where(chosen, hidden, text), chosen


class _Encodes:
  """Outputs of a BERT tower, around a subclass's `_tower_variables`."""

  @property
  def vocab_size(self) -> int:
    return self.tower.vocab_size

  def encode_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch length width"]:
    return apply.infer(self.tower, self._tower_variables(variables), text, text_mask)[1]

  def embed_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch width"]:
    """Not normalised: the mean over real tokens (Reimers & Gurevych, 2019, Sentence-BERT, §3)."""
    tokens = self.encode_text(variables, text, text_mask)
    weights = text_mask[..., None].astype(tokens.dtype)
    return (tokens * weights).sum(axis=1) / weights.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class BERTEncoder(_Encodes):
  """The encoder alone, as public files without heads have it; it has no loss of its own."""

  tower: BERT

  @property
  def text_length(self) -> int:
    return self.tower.context_length

  def init(self, rng):
    return apply.init(self.tower, rng, text_inputs(self.text_length), "text")

  def _tower_variables(self, variables):
    return variables


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModel(_Encodes):
  """The system. Batches hold `text`, `text_mask`, `segments`, and `label`: 1 where the second
  sentence is any.

  Attributes:
    tower: the encoder.
    mask_id: of [MASK].
    unmasked_ids: of words that are never hidden: [CLS], [SEP].
    train_length: tokens of a text in training; 0: as many as the encoder takes.
    next_sentence: whether that is learned; without it, batches hold no `label`.
  """

  tower: BERT
  mask_id: int = 103
  unmasked_ids: tuple[int, ...] = (101, 102)
  train_length: int = 0
  next_sentence: bool = True

  @property
  def network(self) -> nn.Module:
    return BERTPretraining(self.tower, self.next_sentence)

  @property
  def text_length(self) -> int:
    return self.train_length or self.tower.context_length

  def inputs(self):
    text = text_inputs(self.text_length)
    label = {"label": jax.ShapeDtypeStruct((), jnp.int32)} if self.next_sentence else {}
    return {**text, "segments": text["text"], **label}

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "text")

  def _tower_variables(self, variables):
    return {kind: tree.get("tower", {}) for kind, tree in variables.items()}

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """Mean cross entropy of the hidden words and of the next sentence, added (§A.2); `step` is
    not used.
    """
    del step
    text, mask_rng, dropout_rng = batch["text"], *jax.random.split(rng)
    maskable = batch["text_mask"] & ~jnp.isin(text, jnp.array(self.unmasked_ids))
    hidden, chosen = mask_words(
      mask_rng, text, maskable, vocab_size=self.tower.vocab_size, mask_id=self.mask_id
    )
    (words, sentence), state = apply.forward(
      self.network,
      variables,
      hidden,
      batch["text_mask"],
      batch["segments"],
      rng=dropout_rng,
      train=train,
      frozen=frozen,
    )
    terms = {"words": cross_entropy(words, text, chosen)}
    right = (chosen & (words.argmax(-1) == text)).sum()
    metrics = {"words_accuracy": right / jnp.maximum(chosen.sum(), 1)}
    if self.next_sentence:
      each = optax.softmax_cross_entropy_with_integer_labels(sentence, batch["label"])
      terms["next_sentence"] = Term(each.sum(), len(each))
      metrics["next_sentence_accuracy"] = (sentence.argmax(-1) == batch["label"]).mean()
    return terms, Aux(metrics=metrics, state=state)

  def accumulates(self):
    return ""

  def word_logits(
    self,
    variables,
    text: Int[Array, "batch length"],
    text_mask: Bool[Array, "batch length"] | None = None,
    segments: Int[Array, "batch length"] | None = None,
  ) -> tuple[Float[Array, "batch length vocab"], Float[Array, "batch 2"] | None]:
    """Logits of the words and of the next sentence, None without that head."""
    return apply.infer(self.network, variables, text, text_mask, segments)
